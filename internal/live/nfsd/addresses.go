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

// addressFile, in the state directory, has what mountd has said of the addresses of
// clients. A takeover tells the kernel again, so that the first call of each does
// not wait for mountd: that takes 3 ms at best, and 260 were seen.
const addressFile = "addresses"

const (
	addressCache  = "auth.unix.ip"
	addressPeriod = time.Second
	maxAddresses  = 1 << 20 // bytes of the file
)

// address is a client's address and the name that it is known by to the exports.
type address struct {
	ip     netip.Addr
	domain string
}

// parseAddresses reads the kernel's table: a line is the class of service, the
// address and the name, or else what tells that there is none (ip_map_show,
// net/sunrpc/svcauth_unix.c). Other lines are left out, comments among them, which
// entries without an answer are.
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

// fillAddresses tells the kernel what the file in the state directory says. What
// cannot be told mountd will say.
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

// keepAddresses has the file follow the kernel's table until ctx ends. It is not
// made durable: the death of a kernel does not lose it, and it is only a help.
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
