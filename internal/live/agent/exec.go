package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"

	"understudy.dev/understudy/internal/live/wire"
)

// maxOutput bounds what is kept of a command's output, in bytes.
const maxOutput = 1 << 20

// exec runs a command. If the command fails, that is in its status, and not an error.
func (a *Agent) exec(ctx context.Context, r wire.ExecRequest) (result wire.ExecResult, err error) {
	if len(r.Command) == 0 {
		return result, errors.New("no command")
	}
	var out capped
	cmd := exec.CommandContext(ctx, r.Command[0], r.Command[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = r.Dir, &out, &out
	if err := a.children.Start(cmd); err != nil {
		return result, fmt.Errorf("start command: %w", err)
	}
	err = a.children.Wait(cmd)
	if _, failed := errors.AsType[*exec.ExitError](err); err != nil && !failed {
		return result, fmt.Errorf("run command: %w", err)
	}
	return wire.ExecResult{Status: cmd.ProcessState.ExitCode(), Output: out.String()}, nil
}

// capped keeps the beginning of what is written to it.
type capped struct{ bytes.Buffer }

func (c *capped) Write(p []byte) (int, error) {
	c.Buffer.Write(p[:min(len(p), maxOutput-c.Len())])
	return len(p), nil
}
