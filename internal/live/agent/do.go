package agent

import (
	"context"
	"encoding/json"
	"fmt"
)

// Do carries out a call of this process itself, as if a supervisor had sent it. The answer
// is decoded into out unless out is nil.
func (a *Agent) Do(ctx context.Context, verb string, in, out any) error {
	v := a.verbs[verb]
	if v == nil {
		return fmt.Errorf("call %s: this agent does not know the verb", verb)
	}
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("call %s: %w", verb, err)
	}
	answer, err := v(ctx, a.conn.Load(), body)
	if err != nil {
		return fmt.Errorf("call %s: %w", verb, err)
	}
	if out == nil {
		return nil
	}
	if body, err = json.Marshal(answer); err == nil {
		err = json.Unmarshal(body, out)
	}
	if err != nil {
		return fmt.Errorf("decode answer to %s: %w", verb, err)
	}
	return nil
}
