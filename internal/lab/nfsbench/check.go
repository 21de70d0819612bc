package nfsbench

import (
	"context"
	"fmt"
	"path"
	"strings"

	"understudy.dev/understudy/internal/lab/nfslab"
)

// check compares all that was acknowledged with what the server returns now, to a client
// that has nothing in a cache.
func (p *run) check(ctx context.Context) error {
	checks := []func(context.Context) error{p.checkBulk, p.checkWorks, p.checkHeld, p.checkRetried, p.checkUnstable}
	for _, f := range checks {
		if err := f(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (p *run) checked(bytes, lost int64, format string, args ...any) {
	p.report.CheckedBytes += bytes
	p.report.BytesLost += lost
	p.report.Checks = append(p.report.Checks, fmt.Sprintf(format, args...))
}

func (p *run) finding(format string, args ...any) {
	p.report.Findings = append(p.report.Findings, fmt.Sprintf(format, args...))
}

func (p *run) checkBulk(ctx context.Context) error {
	lost, err := p.bulk.check(ctx, p.tcp)
	p.checked(p.bulk.Bytes(), lost, "%d files written by UNSTABLE and COMMIT, none of it on the disk: %d bytes lost", p.bulk.Files, lost)
	return err
}

// below returns the path on the export of a path in the client's guest.
func below(guest string) string {
	for _, target := range mounts {
		if rest, ok := strings.CutPrefix(guest, target+"/"); ok {
			return rest
		}
	}
	return guest
}

func (p *run) checkWorks(ctx context.Context) error {
	var writers []*Lines
	for _, w := range p.outcome.Works {
		switch {
		case w.Append != nil:
			if err := p.checkAppended(ctx, w.Name, w.Append); err != nil {
				return err
			}
		case w.Names != nil:
			got, err := p.tcp.readDir(ctx, below(w.Names.Dir))
			if err != nil {
				return err
			}
			lost, findings := w.Names.check(got)
			p.report.Findings = append(p.report.Findings, findings...)
			p.checked(int64(len(w.Names.Files))*nameBytes, lost, "%s: %d files and %d directories made, renamed and removed throughout: %d findings",
				w.Name, len(w.Names.Files), len(w.Names.Dirs), len(findings))
		case w.Lines != nil:
			writers = append(writers, w.Lines)
		}
	}
	content, err := p.tcp.readFile(ctx, lockedFile)
	if err != nil {
		return err
	}
	lost, findings := checkLines(content, writers)
	p.report.Findings = append(p.report.Findings, findings...)
	p.checked(int64(len(content)), lost, "%d lines appended by %d clients under a lock: %d findings", len(content)/lineBytes, len(writers), len(findings))
	return nil
}

func (p *run) checkAppended(ctx context.Context, name string, a *Appended) error {
	h, err := p.tcp.find(ctx, below(a.Path))
	if err != nil {
		return err
	}
	size, err := p.tcp.size(ctx, h)
	if err != nil {
		return err
	}
	lost, err := a.check(func(at int64, n int) ([]byte, error) { return p.tcp.read(ctx, h, at, n) }, size)
	if a.Wrong > 0 {
		p.finding("%s: %d records were read otherwise than written", name, a.Wrong)
	}
	if most := int64(a.Records+1) * RecordBytes; size > most {
		p.finding("%s: %s has %d bytes, and at most %d were written", name, path.Base(a.Path), size, most)
	}
	p.checked(int64(a.Records)*RecordBytes, lost, "%s: %d records appended throughout and read again: %d bytes lost", name, a.Records, lost)
	return err
}

// checkHeld checks that the lock that was held throughout is still held: another client does
// not get it, the holder may write, and once it is let go another client may have it.
func (p *run) checkHeld(ctx context.Context) error {
	other := nfslab.LockRequest{Path: mounts["4.1"] + "/" + heldFile}
	if err := p.Client.Call(ctx, nfslab.VerbLock, other, nil); err == nil {
		p.finding("a lock held throughout was given to another client")
		return nil
	} else if !strings.Contains(err.Error(), "resource temporarily unavailable") {
		p.finding("a lock that is held is not refused, but: %v", err)
		return nil
	}
	if err := p.Client.Call(ctx, nfslab.VerbUnlock, lock, nil); err != nil {
		p.finding("who held a lock throughout cannot write under it: %v", err)
		return nil
	}
	if err := p.Client.Call(ctx, nfslab.VerbLock, other, nil); err != nil {
		p.finding("a lock that was let go cannot be had: %v", err)
		return nil
	}
	p.report.Checks = append(p.report.Checks, "a v4 lock held throughout: reclaimed, refused to another client, written under, let go, and had by the other")
	return p.Client.Call(ctx, nfslab.VerbUnlock, other, nil)
}

func (p *run) checkRetried(ctx context.Context) error {
	err := after(ctx, p.retried)
	p.report.Retried = p.retried
	for _, c := range p.retried {
		if !c.Holds {
			p.finding("%s, acknowledged before the crash, is undone", c.Call)
		}
		p.report.Checks = append(p.report.Checks, fmt.Sprintf("%s: %s; sent again: %s; sent again after the crash: %s", c.Call, c.First, c.Again, c.After))
	}
	return err
}

func (p *run) checkUnstable(ctx context.Context) error {
	u := &p.report.Unstable
	err := u.commit(ctx, p.tcp)
	if !u.Survived && u.Before == u.After {
		p.finding("a write that was not committed is gone, and the write verifier is the same")
	}
	p.report.Checks = append(p.report.Checks, fmt.Sprintf("a write answered UNSTABLE and not committed: there %v; write verifier %s, then %s", u.Survived, u.Before, u.After))
	return err
}
