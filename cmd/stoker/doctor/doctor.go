// Package doctor looks at a machine as stoker sees it: what works, what does not, and the command that mends it. A check reads,
// dials or tries one thing and changes nothing; all run at once, each within a deadline, so that a socket that hangs holds up nothing.
// cmd/stoker makes the list of checks from the configuration and prints the rows.
package doctor

import (
	"context"
	"fmt"
	"time"
)

// State is how one thing stands.
type State string

// OK: works. Degraded: stoker works, and something is missing that Detail names. Broken: nothing is sampled, or what the
// configuration asks for cannot be.
const (
	OK       State = "ok"
	Degraded State = "degraded"
	Broken   State = "broken"
)

// Row is one finding.
type Row struct {
	Area   string `json:"area"`
	Check  string `json:"check"`
	State  State  `json:"state"`
	Detail string `json:"detail"`
	Remedy string `json:"remedy,omitempty"` // a command, or what to change
}

// Check finds out about one thing. It returns without rows where the thing does not exist here and need not.
type Check struct {
	Area, Name string
	Run        func(ctx context.Context) []Finding
}

// Finding is a Row without the names that its Check has. Name replaces the check's where there are several.
type Finding struct {
	Name   string
	State  State
	Detail string
	Remedy string
}

// one is what a check with one finding returns.
func one(state State, detail, remedy string) []Finding {
	return []Finding{{State: state, Detail: detail, Remedy: remedy}}
}

// Patience is how long a check may take that looks at one thing.
const Patience = 3 * time.Second

// Run runs all checks at once, each for as long as patience, and returns their findings in the order of the checks. A check that does
// not end in time is a finding itself; its goroutine is left behind, for nothing can end a system call that hangs.
func Run(ctx context.Context, checks []Check, patience time.Duration) []Row {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	found := make([]chan []Finding, len(checks))
	for i, c := range checks {
		found[i] = make(chan []Finding, 1)
		go func() { found[i] <- c.Run(ctx) }()
	}
	over := time.After(patience + patience/4) // those that heed the context say themselves what they waited for
	late := false
	var rows []Row
	for i, c := range checks {
		var findings []Finding
		if !late {
			select {
			case findings = <-found[i]:
			case <-over:
				late = true
			}
		}
		if late {
			select {
			case findings = <-found[i]:
			default:
				findings = one(Degraded, fmt.Sprintf("no answer within %s", patience), "find out what hangs: ls, cat or nc -U on it")
			}
		}
		for _, f := range findings {
			r := Row{Area: c.Area, Check: c.Name, State: f.State, Detail: f.Detail, Remedy: f.Remedy}
			if f.Name != "" {
				r.Check = f.Name
			}
			rows = append(rows, r)
		}
	}
	return rows
}

// Worst is the worst state of all rows.
func Worst(rows []Row) State {
	worst := OK
	for _, r := range rows {
		if r.State == Broken || r.State == Degraded && worst == OK {
			worst = r.State
		}
	}
	return worst
}
