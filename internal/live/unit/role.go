package unit

// What the agent of a partition with systemd and the system around it have agreed upon.
const (
	// Agent is the agent's own unit.
	Agent = "understudy-agent.service"
	// PairParameter is the kernel parameter of a system that boots in a pair.
	PairParameter = "understudy.pair"
	// StateDir is gone when the kernel is.
	StateDir = "/run/understudy"
)

// RoleFile is there while a unit has to run here: a condition of it.
func RoleFile(name string) string { return StateDir + "/role/" + name }

// RoleConditions have a unit start where the role is, and nowhere else in a pair; outside of one as
// before. Of conditions with | one has to hold (systemd.unit(5)), so a unit must have no others.
func RoleConditions(name string) []string {
	return []string{"ConditionKernelCommandLine=|!" + PairParameter, "ConditionPathExists=|" + RoleFile(name)}
}
