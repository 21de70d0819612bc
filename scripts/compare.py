# What crash and drgn need people to write for themselves: the regular files with pages that are dirty, or under
# writeback, on file systems with a device. For scripts/compare.sh: drgn -q -c DUMP -s VMLINUX compare.py
from drgn import cast
from drgn.helpers.linux.fs import inode_path
from drgn.helpers.linux.list import list_for_each_entry
from drgn.helpers.linux.mm import PageDirty, PageWriteback
from drgn.helpers.linux.xarray import xa_for_each

files = size = 0
for sb in list_for_each_entry("struct super_block", prog["super_blocks"].address_of_(), "s_list"):
    if not sb.s_bdev:
        continue
    for inode in list_for_each_entry("struct inode", sb.s_inodes.address_of_(), "i_sb_list"):
        if inode.i_mode & 0o170000 != 0o100000 or not inode.i_data.nrpages:
            continue
        pages = 0
        for _, entry in xa_for_each(inode.i_data.i_pages.address_of_()):
            if entry.value_() & 1:
                continue
            page = cast("struct page *", entry)
            pages += bool(PageDirty(page) or PageWriteback(page))
        if pages:
            path = inode_path(inode)
            print(sb.s_id.string_().decode(), inode.i_ino.value_(), pages, path.decode(errors="replace") if path else "?")
            files, size = files + 1, size + 4096 * pages
print(files, "files, up to", size, "bytes")
