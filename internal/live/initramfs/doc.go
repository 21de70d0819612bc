// Package initramfs builds a guest's initial RAM file system: an uncompressed
// newc cpio archive with our static binary as /init and the kernel modules it
// asks for, the same bytes for the same inputs.
//
// # What the guest finds
//
//	/init                  Spec.Init, mode 0755
//	/lib/modules/NAME.ko   the modules, dependencies included, in one directory
//	/lib/modules/order     their file names, one a line, in the order to insert
//	...                    Spec.Files, with the directories above them
//
// # Caveats
//
//   - Modules that a distribution compresses (.ko.gz, .ko.xz, .ko.zst) are uncompressed in
//     the image: the guest's kernel is given the files as they are there.
//   - If the tree has a module twice, the image has the file that depmod takes without an
//     override: from updates/, then extra/, then the kernel's own, then weak-updates/.
//   - Only hard dependencies (depends=) are followed. Soft ones (softdep=), and those
//     that a module asks for by alias at run time, must be named in the Spec.
//   - /dev/console is not written: the kernel's built-in archive has it
//     (usr/default_cpio_list).
package initramfs
