// Package sink is the model of what leaves the profiling pipeline: one pprof for one container, one profile type, one
// window, and how a sink answers. The sinks are its sub-packages: store (the embedded database, always there), pyroscope,
// file, web. It imports nothing of ours and does no I/O.
package sink

import (
	"context"
	"slices"
	"strings"
	"time"
)

// ValueType is a pprof value type: what is counted and in which unit.
type ValueType struct{ Type, Unit string }

// Type names a profile as Pyroscope does: Name is the series label __name__, Samples the pprof sample types, Period the
// pprof period type.
type Type struct {
	Name    string
	Samples []ValueType
	Period  ValueType
}

// CPU is the CPU profile: what Pyroscope already shows for eBPF and Go.
var CPU = Type{
	Name:    "process_cpu",
	Samples: []ValueType{{"cpu", "nanoseconds"}},
	Period:  ValueType{"cpu", "nanoseconds"},
}

// ID is Pyroscope's five-part name of the i-th sample type, "process_cpu:cpu:nanoseconds:cpu:nanoseconds".
func (t Type) ID(i int) string {
	return strings.Join([]string{t.Name, t.Samples[i].Type, t.Samples[i].Unit, t.Period.Type, t.Period.Unit}, ":")
}

// Labels are a profile's labels, name to value. Names match [a-zA-Z_][a-zA-Z0-9_]*, values are never empty,
// service_name is always there. Nobody writes to a Labels that was handed on.
type Labels map[string]string

// String renders the labels in Prometheus' way, sorted by name: {a="1", b="2"}. Equal labels have equal strings, so it
// serves as the key of a series.
func (l Labels) String() string {
	names := make([]string, 0, len(l))
	for n := range l {
		names = append(names, n)
	}
	slices.Sort(names)
	var b strings.Builder
	b.WriteByte('{')
	for i, n := range names {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(n)
		b.WriteString(`="`)
		b.WriteString(strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(l[n]))
		b.WriteByte('"')
	}
	b.WriteByte('}')
	return b.String()
}

// Profile is one pprof for one container, one type, one window: [Start, End).
type Profile struct {
	Type   Type
	Labels Labels
	// ContainerID identifies the container on this node; it is stored beside the labels, not as one.
	ContainerID string
	Start, End  time.Time
	// BootStart is Start on CLOCK_BOOTTIME; with the boot id it mends Start when the wall clock was wrong at boot.
	BootStart time.Duration
	// Pprof is the gzipped profile.proto; Total the sum of the first sample type's values, Samples how many samples the
	// profile has.
	Pprof   []byte
	Total   int64
	Samples int
	// Tenant is the Pyroscope tenant for this profile; empty means the endpoint's own.
	Tenant string
}

// Sink takes the profiles of one window. Write returns after they are safe where this sink puts them, or with an error that
// names the remedy; it may be called again with the same profiles only if it returned an error. One caller at a time.
type Sink interface {
	Name() string
	Write(ctx context.Context, profiles []Profile) error
	Close() error
}

// Outcome is what became of one profile that an Uploader sent.
type Outcome uint8

const (
	// Delivered: the server said it has it.
	Delivered Outcome = iota + 1
	// Refused: the server will never take it (a bad label, too old, too large); Reason says which. Never sent again.
	Refused
	// Uncertain: the whole request was written and no answer came; the server may have it.
	Uncertain
	// Retry: the server does not have it (not connected, 429, 503, …); send again, after Result.After at the earliest.
	Retry
)

func (o Outcome) String() string {
	switch o {
	case Delivered:
		return "delivered"
	case Refused:
		return "refused"
	case Uncertain:
		return "uncertain"
	case Retry:
		return "retry"
	}
	return "unknown"
}

// Result is the answer for one profile, in the order of the profiles that were sent.
type Result struct {
	Outcome Outcome
	Reason  string        // for people: what came back and what to do; empty when delivered
	After   time.Duration // Retry only: the earliest next try; 0 lets the caller's back-off decide
	// Suspect, Retry only: the fault may lie in this very profile (a Pyroscope server answers 500 to a pprof that it cannot
	// decode, as it does when it is ill). The caller gives up on a profile that stays suspect while others are taken.
	Suspect bool
}

// Uploader sends stored profiles to a server. It keeps no queue: the store is the queue.
type Uploader interface {
	// Name is the delivery's name in the store: one per endpoint, stable over restarts.
	Name() string
	// Send returns one Result per profile, never fewer, and does not block longer than the endpoint's timeout. Safe for
	// concurrent use.
	Send(ctx context.Context, profiles []Profile) []Result
}
