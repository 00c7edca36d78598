package web

import "time"

// Container is one row of GET /api/v1/containers. Times that are not known are absent.
type Container struct {
	ID        string `json:"id"`
	Name      string `json:"name"`
	Image     string `json:"image,omitempty"`
	Runtime   string `json:"runtime,omitempty"`
	Namespace string `json:"namespace,omitempty"` // the containerd namespace, not the Kubernetes one
	Pod       *Pod   `json:"pod,omitempty"`
	// User is the user id of whose rootless engine or service manager runs it; empty for root's.
	User string `json:"user,omitempty"`
	// KubernetesContainer is the container's name in its pod spec.
	KubernetesContainer string            `json:"kubernetes_container,omitempty"`
	Labels              map[string]string `json:"labels,omitempty"`
	CgroupPath          string            `json:"cgroup_path,omitempty"`
	CgroupID            uint64            `json:"cgroup_id,omitempty"`
	PID                 int               `json:"pid,omitempty"`
	SystemdUnit         string            `json:"systemd_unit,omitempty"`
	ScopeID             uint32            `json:"scope_id,omitempty"`
	// Sources says who told about this run of the container, and when it first did.
	Sources map[string]time.Time `json:"sources,omitempty"`
	// TaskCreatedAt is when its first process was made, StartedAt when that began with the container's own program.
	CreatedAt     time.Time `json:"created_at,omitzero"`
	TaskCreatedAt time.Time `json:"task_created_at,omitzero"`
	StartedAt     time.Time `json:"started_at,omitzero"`
	AnnouncedAt   time.Time `json:"announced_at,omitzero"`
	InScopeAt     time.Time `json:"in_scope_at,omitzero"`
	GoneAt        time.Time `json:"gone_at,omitzero"`
	// ScopeBeforeStart says whether InScopeAt is before StartedAt, ScopeAfterStartMS by how many milliseconds it is after (negative:
	// before). Both are absent when either time is not known.
	ScopeBeforeStart  *bool    `json:"scope_before_start,omitempty"`
	ScopeAfterStartMS *float64 `json:"scope_after_start_ms,omitempty"`
	// State is the registry's word: "profiled", "provisional", "excluded", "gone", …; Reason says why it is not profiled.
	State  string `json:"state"`
	Reason string `json:"reason,omitempty"`
	// Notes are what the container's own labels asked for in vain.
	Notes   []string `json:"notes,omitempty"`
	Service string   `json:"service,omitempty"`
	Tenant  string   `json:"tenant,omitempty"`
	// AskedFrequency is what the container's own label asked for (0: nothing), GivenFrequency what it got; both in Hz.
	AskedFrequency int `json:"frequency_asked,omitempty"`
	GivenFrequency int `json:"frequency_given,omitempty"`
}

// Source is one row of GET /api/v1/sources: who tells about containers, and how that stands.
type Source struct {
	Name  string      `json:"name"`
	State SourceState `json:"state"`
	// Message is what was looked for in vain, or what went wrong and what to do about it.
	Message string `json:"message,omitempty"`
	// Since is when it came into this state.
	Since time.Time `json:"since,omitzero"`
	// Containers is how many containers that are not gone it has told about.
	Containers int `json:"containers"`
}

// SourceState is where a source of containers stands.
type SourceState string

// The states of a source.
const (
	SourceConnected SourceState = "connected"
	SourceAbsent    SourceState = "absent" // there is nothing to follow, and nobody said that there would be: no trouble
	SourceFailing   SourceState = "error"
)

// Pod is the Kubernetes pod of a container.
type Pod struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	UID       string `json:"uid,omitempty"`
}

// Top is the answer of GET /api/v1/top: the last complete window [WindowStart, WindowEnd).
type Top struct {
	WindowStart time.Time `json:"window_start,omitzero"`
	WindowEnd   time.Time `json:"window_end,omitzero"`
	// Cores is the sum over the containers: CPU time per second of wall time.
	Cores      float64        `json:"cores"`
	Containers []TopContainer `json:"containers"`
}

// TopContainer is what one container did in the window; Containers are sorted by Cores, Functions by Self, both falling.
type TopContainer struct {
	ID        string        `json:"id"`
	Name      string        `json:"name"`
	Service   string        `json:"service,omitempty"`
	Cores     float64       `json:"cores"`
	Samples   int64         `json:"samples"`
	Functions []TopFunction `json:"functions,omitempty"`
}

// TopFunction is one function of a container; both values are nanoseconds of CPU time in the window.
type TopFunction struct {
	Name  string `json:"name"`
	File  string `json:"file,omitempty"` // the mapping's base name: which binary or library it is in
	Self  int64  `json:"self"`
	Total int64  `json:"total"`
}

// RecordRequest is the body of POST /api/v1/record.
type RecordRequest struct {
	// Targets are container names, ids, id prefixes, name=…, label=value or pid:N; none means all.
	Targets []string `json:"targets,omitempty"`
	// Duration is how long to sample, as Go writes durations ("10s").
	Duration Duration `json:"duration"`
	// Frequency in Hz; 0 means the agent's own.
	Frequency int `json:"frequency,omitempty"`
}

// RecordProgress is one line of the answer of POST /api/v1/record while it lasts.
type RecordProgress struct {
	Elapsed    Duration `json:"elapsed"`
	Duration   Duration `json:"duration"`
	Samples    int64    `json:"samples"`
	Stacks     int64    `json:"stacks,omitempty"`
	Containers int      `json:"containers"`
}

// RecordMessage is one line of the answer of POST /api/v1/record: exactly one field is set. The last line has Pprof or Error.
type RecordMessage struct {
	Progress *RecordProgress `json:"progress,omitempty"`
	Pprof    []byte          `json:"pprof,omitempty"` // gzipped profile.proto, base64 in JSON
	Error    *Error          `json:"error,omitempty"`
}

// Duration is a time.Duration that JSON writes as Go does ("1m30s").
type Duration time.Duration

// MarshalText implements [encoding.TextMarshaler].
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// HealthState is how well a part works.
type HealthState string

// The states of a part, and of the whole: the worst of its parts.
const (
	OK       HealthState = "ok"
	Degraded HealthState = "degraded" // works with less; the remedy says how to have it all
	Failing  HealthState = "failing"  // does not do what it is for; /healthz answers 503
)

// Health is the answer of /healthz.
type Health struct {
	Version   string        `json:"version,omitempty"`
	Node      string        `json:"node,omitempty"`
	StartedAt time.Time     `json:"started_at,omitzero"`
	Parts     []HealthPart  `json:"parts"`
	Samples   HealthSamples `json:"samples"`
}

// HealthPart is one part of the agent: "sampler", "store", "source containerd", "sink pyroscope", …
type HealthPart struct {
	Name    string      `json:"name"`
	State   HealthState `json:"state"`
	Message string      `json:"message,omitempty"` // what is, in a sentence
	Remedy  string      `json:"remedy,omitempty"`  // what to do about it
}

// HealthSamples are the sampler's counts since the agent started: the pages show them beside the graphs, so that a loss is seen.
type HealthSamples struct {
	Taken int64 `json:"taken"` // in scope
	Lost  int64 `json:"lost"`  // in scope, without a usable stack, by whatever cause
}

// State is the worst state of all parts.
func (h Health) State() HealthState {
	worst := OK
	for _, p := range h.Parts {
		if p.State == Failing {
			return Failing
		}
		if p.State == Degraded {
			worst = Degraded
		}
	}
	return worst
}

// Error is every error of the API: {"error": …, "remedy": …}. Backends may return one to choose the status.
type Error struct {
	Status  int    `json:"-"` // HTTP status; 0 means 500
	Message string `json:"error"`
	Remedy  string `json:"remedy,omitempty"`
}

func (e *Error) Error() string {
	if e.Remedy == "" {
		return e.Message
	}
	return e.Message + ": " + e.Remedy
}
