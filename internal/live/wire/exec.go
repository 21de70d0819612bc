package wire

// Exec runs a command in a partition to its end, and needs no shell there.
const Exec = "exec" // ExecRequest to ExecResult

// ExecRequest is a command.
type ExecRequest struct {
	Command []string `json:"command"`
	Dir     string   `json:"dir,omitempty"` // where it runs; empty: in /
}

// ExecResult is the result of a command.
type ExecResult struct {
	Status int    `json:"status"` // exit status; -1: ended by a signal
	Output string `json:"output"` // standard output and error, at most the first 1 MiB
}
