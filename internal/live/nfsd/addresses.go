package nfsd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// addressFile, in the state directory, holds mountd's answers about the addresses of
// clients. A takeover gives them to the kernel again, so that the first call of each client
// does not wait for mountd: that takes 3 ms at best, and 260 ms were seen.
const addressFile = "addresses"

const (
	addressCache  = "auth.unix.ip"
	addressPeriod = time.Second
	maxAddresses  = 1 << 20 // bytes of the file
)

// address is a client's address and the name by which the exports know the client.
type address struct {
	ip     netip.Addr
	domain string
}

// parseAddresses reads the kernel's table: a line is the class of service, the
// address, and the name or a mark that there is none (ip_map_show,
// net/sunrpc/svcauth_unix.c). Other lines are left out, such as comments, which
// is how entries without an answer are shown.
func parseAddresses(table string) []address {
	var out []address
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) != 3 || f[0] != "nfsd" || f[2] == "-no-domain-" {
			continue
		}
		if ip, err := netip.ParseAddr(f[1]); err == nil && ip.Zone() == "" {
			out = append(out, address{ip, f[2]})
		}
	}
	return out
}

// fillAddresses tells the kernel the addresses in the file in the state directory. For
// those that it fails to tell, the kernel will ask mountd.
func fillAddresses(state string) error {
	f, err := os.Open(filepath.Join(state, addressFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	table, err := io.ReadAll(io.LimitReader(f, maxAddresses))
	if err != nil {
		return fmt.Errorf("read clients' addresses: %w", err)
	}
	expiry := time.Now().Add(cacheLife).Unix()
	var errs []error
	for _, a := range parseAddresses(string(table)) {
		errs = append(errs, tell(addressCache, fmt.Sprintf("nfsd %s %d %s\n", a.ip, expiry, a.domain)))
	}
	return errors.Join(errs...)
}

// keepAddresses copies the kernel's table to the file whenever it changes, until ctx ends.
// It does not sync the file: the death of a kernel does not lose it, and it only saves time.
func keepAddresses(ctx context.Context, state string) error {
	var kept []byte
	tick := time.NewTicker(addressPeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		table, err := os.ReadFile("/proc/net/rpc/" + addressCache + "/content")
		if err != nil {
			return fmt.Errorf("read clients' addresses: %w", err)
		}
		if bytes.Equal(table, kept) {
			continue
		}
		kept = table
		name := filepath.Join(state, addressFile)
		if err := os.WriteFile(name+".new", table, 0o600); err != nil {
			return fmt.Errorf("keep clients' addresses: %w", err)
		}
		if err := os.Rename(name+".new", name); err != nil {
			return fmt.Errorf("keep clients' addresses: %w", err)
		}
	}
}
