package unit

// Names that the agent of a partition with systemd and the system around it share.
const (
	// Agent is the agent's own unit.
	Agent = "understudy-agent.service"
	// PairParameter is the kernel parameter of a system that boots in a pair.
	PairParameter = "understudy.pair"
	// StateDir is a directory that is lost with the kernel.
	StateDir = "/run/understudy"
)

// RoleFile is the path of a file that exists while a unit has to run here: a condition of the unit.
func RoleFile(name string) string { return StateDir + "/role/" + name }

// RoleConditions makes a unit start where the role is, and nowhere else in a pair; outside of a pair it
// starts as before. Of conditions with | one must hold (systemd.unit(5)), so a unit must have no others of that kind.
func RoleConditions(name string) []string {
	return []string{"ConditionKernelCommandLine=|!" + PairParameter, "ConditionPathExists=|" + RoleFile(name)}
}
