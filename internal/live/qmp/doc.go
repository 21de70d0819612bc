// Package qmp talks to a QEMU process over its machine protocol, and promises
// that each command gets its own answer, that no event is lost unnoticed, and
// that a slow process can be told from one that is gone.
//
// It has three layers. wire.go turns bytes into messages. client.go supervises
// a connection: greeting, answers matched by id, events kept. verbs.go has the
// commands that we use, typed.
//
// The protocol is docs/interop/qmp-spec.txt of QEMU, the commands are
// docs/interop/qemu-qmp-ref of QEMU 7.2.
//
// # Caveats
//
//   - A QEMU monitor serves one client. A second connection is accepted by the
//     kernel and never greeted.
//   - A command whose context ends is still carried out if QEMU has received it.
//     Its late answer is dropped, and the connection goes on.
package qmp
