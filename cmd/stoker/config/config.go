// Package config is what the operator can choose: one Config, one Default, one Validate. It reads the YAML file, the
// STOKER_ environment and the values of flags (flag over environment over file over default), remembers where each value
// came from, and reports every mistake at once with its place. It starts nothing, changes nothing and keeps no state: a
// Config is plain data that anyone may copy. Only cmd/stoker imports it; it hands the values on to the packages it wires.
//
// A key exists once: as a field of these structs with its yaml name and its help text. The file's decoder, the names of the
// environment variables and flags, `config show`, `config check` and the comparison for a reload all follow from that.
package config

import (
	"time"

	"github.com/prometheus/prometheus/model/relabel"

	"github.com/stoker-profiler/stoker/hook/oci/wire"
)

// DefaultFile is read when it exists and nothing else was named.
const DefaultFile = "/etc/stoker/stoker.yaml"

// Config is everything the agent can be told. The zero value is not usable: start from Default.
//
// Tags: yaml is the key, help the text for people, live:"true" says that a running agent takes the new value on SIGHUP,
// secret:"true" that the value is never printed.
type Config struct {
	Sampling        Sampling          `yaml:"sampling"`
	Targets         []Rule            `yaml:"targets" live:"true" help:"which containers are profiled; the first rule that matches wins; what none matches is profiled only if all rules exclude"`
	Systemd         []string          `yaml:"systemd" live:"true" help:"units of systemd that are profiled like containers: names of services and scopes, * and ? stand for any characters; also those of users"`
	Relabel         []*relabel.Config `yaml:"relabel_configs" live:"true" help:"Prometheus relabeling rules over __meta_container_*, __meta_docker_* and __meta_kubernetes_pod_*"`
	Labels          map[string]string `yaml:"labels" live:"true" help:"labels put on every profile"`
	Store           Store             `yaml:"store"`
	Pyroscope       []Endpoint        `yaml:"pyroscope" help:"Pyroscope servers to push to, one or a list; none: profiles stay on this node"`
	Unwind          Unwind            `yaml:"unwind"`
	Symbols         Symbols           `yaml:"symbols"`
	Web             Web               `yaml:"web"`
	Socket          string            `yaml:"socket" help:"unix socket over which ps, top and record reach the agent"`
	ContainerLabels ContainerLabels   `yaml:"container_labels"`
	Runtimes        Runtimes          `yaml:"runtimes"`
	Log             Log               `yaml:"log"`
}

// Sampling says how often and over which interval.
type Sampling struct {
	Frequency int           `yaml:"frequency" help:"samples per second on each CPU"`
	Window    time.Duration `yaml:"window" help:"interval in which equal stacks are counted; one profile per container and window"`

	UntestedKernel bool `yaml:"untested_kernel" help:"sample also on a kernel older than any that stoker is tested with (docs/kernels.md)"`
}

// Rule is one line of targets. Every field that is set must match; a rule without any matches all containers. Patterns are
// shell globs in which * also matches a slash. A container that no rule matches is profiled only where every rule excludes.
// The fields are those of registry.Rule, so that one converts into the other.
type Rule struct {
	Exclude   bool              `yaml:"exclude" help:"do not profile what matches"`
	Runtime   string            `yaml:"runtime" help:"containerd, docker, … (pattern)"`
	User      string            `yaml:"user" help:"user id whose rootless engine runs it, 0 for root's (pattern)"`
	Namespace string            `yaml:"namespace" help:"namespace of the pod, or of containerd where there is no pod (pattern)"`
	Pod       string            `yaml:"pod" help:"name of the pod (pattern)"`
	Name      string            `yaml:"name" help:"name or id of the container (pattern)"`
	Image     string            `yaml:"image" help:"image reference as the runtime spells it (pattern)"`
	Label     map[string]string `yaml:"label" help:"labels of the container and the patterns of their values"`
}

// Store is the embedded database and its bounds.
type Store struct {
	Path    string        `yaml:"path" help:"the SQLite database that holds the profiles"`
	MaxSize Bytes         `yaml:"max_size" help:"the database with its write-ahead log stays below this; the oldest profiles go first"`
	MaxAge  time.Duration `yaml:"max_age" help:"profiles older than this are deleted"`
	MinFree Percent       `yaml:"min_free" help:"share of the file system that stays free"`
}

// Endpoint is one Pyroscope server.
type Endpoint struct {
	Name            string            `yaml:"name" help:"names this endpoint's deliveries in the store; must not change as long as they wait; default: the host and path of the URL"`
	URL             string            `yaml:"url" help:"base URL of the server"`
	TenantID        string            `yaml:"tenant_id" help:"value of X-Scope-OrgID"`
	BasicAuth       BasicAuth         `yaml:"basic_auth"`
	Authorization   Authorization     `yaml:"authorization"`
	BearerTokenFile string            `yaml:"bearer_token_file" help:"file with a bearer token; short for authorization"`
	Headers         map[string]string `yaml:"headers" secret:"true" help:"further request headers"`
	TLS             TLS               `yaml:"tls"`
	RemoteTimeout   time.Duration     `yaml:"remote_timeout" help:"how long one push may take"`
	Uncertain       string            `yaml:"uncertain" help:"a push whose answer was lost: resend (may be counted twice) or keep (may be missing)"`
}

// BasicAuth is HTTP basic authentication.
type BasicAuth struct {
	Username     string `yaml:"username" help:"user name"`
	PasswordFile string `yaml:"password_file" help:"file with the password"`
}

// Authorization is an Authorization header made of a type and a secret from a file.
type Authorization struct {
	Type            string `yaml:"type" help:"first word of the Authorization header"`
	CredentialsFile string `yaml:"credentials_file" help:"file with the secret"`
}

// TLS is the client side of TLS.
type TLS struct {
	CAFile             string `yaml:"ca_file" help:"PEM file with the authorities to trust instead of the system's"`
	CertFile           string `yaml:"cert_file" help:"PEM file with the client certificate"`
	KeyFile            string `yaml:"key_file" help:"PEM file with the client certificate's key"`
	ServerName         string `yaml:"server_name" help:"name to expect in the server's certificate"`
	InsecureSkipVerify bool   `yaml:"insecure_skip_verify" help:"accept any certificate"`
}

// Unwind says of which interpreted languages the functions are shown. What no process of a container runs costs nothing.
type Unwind struct {
	Python string `yaml:"python" help:"functions of Python programs (CPython 3.8 to 3.13; docs/python.md): auto, where there are any; off, only the interpreter's own"`
	Node   string `yaml:"node" help:"functions of JavaScript programs (Node.js 18 to 26; docs/node.md): auto, where there are any; off, only addresses of their code"`
	Ruby   string `yaml:"ruby" help:"functions of Ruby programs (CRuby 3.1; docs/ruby.md): auto, where there are any; off, only the interpreter's own"`
}

// Symbols says where names of functions come from, beside the files of the node itself.
type Symbols struct {
	Debuginfod Debuginfod `yaml:"debuginfod"`
}

// Debuginfod says which servers are asked for debug files that are nowhere on the node.
type Debuginfod struct {
	URLs    []string      `yaml:"urls" help:"debuginfod servers, one or a list, that are asked for debug files by build id, so that they learn which builds run here; none: nobody is asked (docs/symbols.md)"`
	Cache   string        `yaml:"cache" help:"directory that keeps what was fetched"`
	MaxSize Bytes         `yaml:"max_size" help:"the directory stays below this, what was used longest ago goes first; one file may have half of it"`
	Timeout time.Duration `yaml:"timeout" help:"how long one download may take"`
}

// Web is the local UI with /metrics and /healthz.
type Web struct {
	Listen    string   `yaml:"listen" help:"address of the UI: host:port, unix:/path, or off"`
	TokenFile string   `yaml:"token_file" help:"file with a token that browsers and scrapers must present; needed beyond loopback"`
	Hosts     []string `yaml:"hosts" help:"names under which the UI may be asked for, besides localhost and addresses"`
}

// ContainerLabels says how far a container may steer itself through its own labels. The fields are those of
// registry.LabelPolicy.
type ContainerLabels struct {
	Allow        []string `yaml:"allow" live:"true" help:"stoker.* labels that are obeyed: enable, service, frequency"`
	Tenants      []string `yaml:"tenants" live:"true" help:"tenants that a container may choose with stoker.tenant"`
	MaxFrequency int      `yaml:"max_frequency" live:"true" help:"highest frequency that a container may ask for"`
}

// Runtimes says where the container runtimes are.
type Runtimes struct {
	Containerd Containerd `yaml:"containerd"`
	Docker     Docker     `yaml:"docker"`
	Podman     Podman     `yaml:"podman"`
	CRIO       CRIO       `yaml:"crio"`
	NRI        NRI        `yaml:"nri"`
	Hook       Hook       `yaml:"hook"`
}

// Containerd says where containerd listens.
type Containerd struct {
	Address []string `yaml:"address" help:"containerd's sockets, one or a list; none: look in the usual places; off: do not ask containerd"`
}

// Docker says where Docker listens.
type Docker struct {
	Address []string `yaml:"address" help:"Docker's sockets, one or a list; none: /var/run/docker.sock when there is one; off: do not ask Docker"`
}

// Podman says where Podman's services listen.
type Podman struct {
	Address []string `yaml:"address" help:"sockets of Podman's services, one or a list, whose owners' containers are followed; none: root's and every user's, with or without a service; off: leave Podman alone"`
}

// CRIO says where CRI-O listens.
type CRIO struct {
	Address []string `yaml:"address" help:"CRI-O's sockets, one or a list; none: /var/run/crio/crio.sock when there is one; off: do not ask CRI-O"`
}

// NRI says whether to be a plugin of the runtime, and where.
type NRI struct {
	Enabled bool   `yaml:"enabled" help:"be told of pods through NRI before their first instruction; the runtime waits for each answer (docs/nri.md)"`
	Socket  string `yaml:"socket" help:"where the runtime listens for NRI plugins"`
}

// Hook says where the OCI hook finds the agent.
type Hook struct {
	Socket string `yaml:"socket" help:"unix socket at which containers are announced by stoker-hook (see stoker hook); off: no socket"`
}

// Log is the agent's own log on stderr.
type Log struct {
	Level  string `yaml:"level" live:"true" help:"debug, info, warn or error"`
	Format string `yaml:"format" help:"text or json"`
}

// Auto is the value that leaves it to what is there.
const Auto = "auto"

// Off is the value that switches web.listen, languages, the addresses of runtimes and runtimes.hook.socket off.
const Off = "off"

// Default returns the configuration of an agent that was told nothing.
func Default() Config {
	return Config{
		Sampling: Sampling{Frequency: 97, Window: 10 * time.Second},
		Store:    Store{Path: "/var/lib/stoker/profiles.db", MaxSize: 256 << 20, MaxAge: 72 * time.Hour, MinFree: 0.05},
		Unwind:   Unwind{Python: Auto, Node: Auto, Ruby: Auto},
		Symbols:  Symbols{Debuginfod: Debuginfod{Cache: "/var/lib/stoker/debuginfod", MaxSize: 256 << 20, Timeout: 3 * time.Minute}},
		Web:      Web{Listen: "127.0.0.1:4041"},
		Socket:   "/run/stoker/stoker.sock",
		ContainerLabels: ContainerLabels{
			Allow:        []string{"enable", "service", "frequency"},
			MaxFrequency: 199,
		},
		Runtimes: Runtimes{NRI: NRI{Socket: "/var/run/nri/nri.sock"}, Hook: Hook{Socket: wire.Socket}},
		Log:      Log{Level: "info", Format: "text"},
	}
}

// DefaultEndpoint returns what an entry of pyroscope starts from.
func DefaultEndpoint() Endpoint {
	// A push is answered after about half a second and the server gives itself five for the write path: a short timeout
	// only manufactures doubt about what was stored.
	return Endpoint{RemoteTimeout: 30 * time.Second, Uncertain: Resend}
}

// What to do about a push whose answer was lost: Endpoint.Uncertain.
const (
	Resend = "resend"
	Keep   = "keep"
)

// notYet are keys of the configuration's contract that this version does not act on. They are refused rather than ignored,
// for a key that does nothing is worse than an error.
var notYet = map[string]string{
	"pyroscope.symbolize": "leaving symbols to the server",
}

// inlineSecrets are keys that others allow and we do not: secrets come from files.
var inlineSecrets = map[string]string{
	"pyroscope.basic_auth.password":       "password_file",
	"pyroscope.authorization.credentials": "credentials_file",
	"pyroscope.bearer_token":              "bearer_token_file",
	"web.token":                           "token_file",
}
