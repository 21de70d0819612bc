// Package nfsbench measures what the clients of an NFS server see when the
// server's kernel dies: kernel clients in a guest and a client of our own write and
// read throughout, and every byte that was acknowledged is looked for afterwards.
package nfsbench
