// Package labeler turns what is known about a container into the labels of its profiles: stoker's own label set, the
// configured static labels, and Prometheus relabelling over everything that was learned, under the names that Prometheus
// and Grafana Alloy use.
//
// It does no I/O and keeps no state but counters; a [Labeler] may be used from any goroutine. It never asks a runtime or a
// Kubernetes API: what is not in the [container.Container] does not exist here. Containers choose many of the strings:
// names are sanitised, values bounded, counts capped, and what that costs is counted.
package labeler

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"unicode/utf8"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/relabel"

	"github.com/stoker-profiler/stoker/runtime/container"
	"github.com/stoker-profiler/stoker/sink"
)

// The limits, all below those of a Pyroscope server (30 names with __name__, 1024 and 2048 bytes).
const (
	MaxLabels     = 29 // service_name is one of them; __name__, which the sink adds, is the thirtieth
	MaxNameBytes  = 128
	MaxValueBytes = 512 // an image reference with a digest fits; a pod's annotation with a whole manifest does not
)

// Names of the labels that stoker sets, as docs/labels.md explains them. Where a profile has too many labels, these stay.
const (
	ServiceName      = "service_name"
	Node             = "node"
	ContainerRuntime = "container_runtime"
	ContainerName    = "container_name"
	ContainerImage   = "container_image"
	ContainerID      = "container_id"
	ContainerUser    = "container_user"
	Namespace        = "namespace"
	Pod              = "pod"
	Container        = "container"
	ComposeProject   = "compose_project"
	ComposeService   = "compose_service"
	SystemdUnit      = "systemd_unit"
)

// own is every label that stoker sets, the most important first.
var own = []string{ServiceName, Namespace, Pod, Container, ContainerName, ComposeProject, ComposeService, SystemdUnit, ContainerUser, Node,
	ContainerRuntime, ContainerImage, ContainerID}

// Config says how profiles are labelled.
type Config struct {
	// Node is this machine's name; empty leaves the label out.
	Node string
	// Static labels go on every profile. They win over what stoker finds out, and relabelling may change them.
	Static map[string]string
	// Relabel is applied last, to the labels above and to all __meta_* labels. Rules must be as Prometheus' YAML gives
	// them: with its defaults filled in. New keeps copies.
	Relabel []*relabel.Config
	// ContainerID adds the label container_id, which makes a new series at every restart of a container.
	ContainerID bool
}

// Labeler makes labels; see [New].
type Labeler struct {
	cfg     Config
	dropped atomic.Uint64
	cut     atomic.Uint64
	clashes atomic.Uint64
}

// Stats counts what did not fit. Each counts at every call of Labels, so once per container where the caller keeps results.
type Stats struct {
	Dropped uint64 // labels left out because there were more than MaxLabels
	Cut     uint64 // values and names that were shortened, or were not UTF-8
	Clashes uint64 // labels left out because another had the same name once both were sanitised
}

// New checks the configuration. All that is wrong with it is in the error, each with its remedy.
func New(cfg Config) (*Labeler, error) {
	var errs []error
	static := map[string]string{}
	for _, name := range sortedKeys(cfg.Static) {
		value := cfg.Static[name]
		switch {
		case name == ServiceName:
			errs = append(errs, errors.New("label service_name: all containers would be one service: "+
				"set the label stoker.service on a container, or write a relabel rule"))
		case strings.HasPrefix(name, "__") || !validName(name) || len(name) > MaxNameBytes:
			errs = append(errs, fmt.Errorf("label %q: a name has letters, digits and _, does not begin with a digit or __, "+
				"and has at most %d bytes", name, MaxNameBytes))
		case value == "":
			errs = append(errs, fmt.Errorf("label %s: its value is empty: give it one or remove it", name))
		case len(value) > MaxValueBytes || !utf8.ValidString(value):
			errs = append(errs, fmt.Errorf("label %s: its value must be UTF-8 of at most %d bytes, it has %d", name, MaxValueBytes, len(value)))
		default:
			static[name] = value
		}
	}
	if n := MaxLabels - len(own); len(static) > n {
		errs = append(errs, fmt.Errorf("%d labels: beside stoker's own a profile has room for %d", len(static), n))
	}
	cfg.Static = static
	rules := make([]*relabel.Config, 0, len(cfg.Relabel))
	for i, r := range cfg.Relabel {
		if r == nil {
			errs = append(errs, fmt.Errorf("relabel rule %d is empty", i+1))
			continue
		}
		rule := *r
		if rule.Regex.Regexp == nil {
			rule.Regex = relabel.DefaultRelabelConfig.Regex
		}
		// Legacy names only: Pyroscope hides labels with other characters.
		if err := rule.Validate(model.LegacyValidation); err != nil {
			errs = append(errs, fmt.Errorf("relabel rule %d: %w", i+1, err))
			continue
		}
		rules = append(rules, &rule)
	}
	cfg.Relabel = rules
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return &Labeler{cfg: cfg}, nil
}

// Stats returns the counters.
func (l *Labeler) Stats() Stats {
	return Stats{Dropped: l.dropped.Load(), Cut: l.cut.Load(), Clashes: l.clashes.Load()}
}

// Labels returns the labels of c's profiles. service is the name that the container's own label asks for, as far as the
// configuration lets it; it may be empty. keep is false when a relabel rule drops the container: it is not to be profiled.
// The result depends on its arguments only, so a caller may keep it for as long as the container does not change.
func (l *Labeler) Labels(c container.Container, service string) (result sink.Labels, keep bool) {
	found := l.find(&c, service)
	if len(l.cfg.Relabel) == 0 {
		return l.finish(found, found[ServiceName]), true
	}
	b := labels.NewBuilder(labels.EmptyLabels())
	l.offer(&c, service, func(name, value string) { b.Set(name, value) })
	for n, v := range found {
		b.Set(n, v)
	}
	if !relabel.ProcessBuilder(b, l.cfg.Relabel...) {
		return nil, false
	}
	left := make(map[string]string, len(found))
	b.Range(func(lb labels.Label) {
		if !strings.HasPrefix(lb.Name, "__") {
			left[lb.Name] = lb.Value
		}
	})
	return l.finish(left, found[ServiceName]), true
}

// find returns stoker's own labels and the static ones, without empty values.
func (l *Labeler) find(c *container.Container, service string) map[string]string {
	m := make(map[string]string, len(own)+len(l.cfg.Static))
	set := func(name, value string) {
		if value != "" {
			m[name] = value
		}
	}
	set(ServiceName, l.serviceName(c, service))
	set(Node, l.cfg.Node)
	set(ContainerRuntime, c.Runtime)
	set(ContainerName, containerName(c))
	set(ContainerImage, c.Image)
	if l.cfg.ContainerID {
		set(ContainerID, c.ID)
	}
	set(Namespace, c.Pod.Namespace)
	set(Pod, c.Pod.Name)
	set(Container, c.KubernetesContainer)
	set(ComposeProject, c.Labels[composeProject])
	set(ComposeService, c.Labels[composeService])
	set(SystemdUnit, systemdUnit(c))
	set(ContainerUser, c.User) // or a user's nginx.service would be in one series with the system's
	for n, v := range l.cfg.Static {
		m[n] = v
	}
	return m
}

// Labels and annotations of others that mean something here.
const (
	pyroscopeService = "pyroscope.io/service_name"
	composeProject   = "com.docker.compose.project"
	composeService   = "com.docker.compose.service"
	nerdctlName      = "nerdctl/name"
	podmanUnit       = "PODMAN_SYSTEMD_UNIT"
)

func containerName(c *container.Container) string {
	return cmp.Or(c.Name, c.KubernetesContainer, c.Labels[nerdctlName], shortID(c.ID))
}

func systemdUnit(c *container.Container) string { return cmp.Or(c.SystemdUnit, c.Labels[podmanUnit]) }

// shortID is what people call a container without a name: the first twelve digits of a long id, any other id as it is.
func shortID(id string) string {
	if len(id) == 64 && strings.Trim(id, "0123456789abcdef") == "" {
		return id[:12]
	}
	return id
}

// serviceName is the first that exists, in the order of docs/labels.md, and never empty.
func (l *Labeler) serviceName(c *container.Container, service string) string {
	pair := func(a, b string) string {
		if a == "" || b == "" {
			return ""
		}
		return a + "/" + b
	}
	for _, name := range []string{
		service,
		c.Labels[pyroscopeService], c.Annotations[pyroscopeService], c.Pod.Annotations[pyroscopeService], c.Pod.Labels[pyroscopeService],
		c.Env["OTEL_SERVICE_NAME"], resourceAttribute(c.Env["OTEL_RESOURCE_ATTRIBUTES"], "service.name"),
		pair(c.Pod.Namespace, c.KubernetesContainer),
		pair(c.Labels[composeProject], c.Labels[composeService]),
		c.Name, c.KubernetesContainer, c.Labels[nerdctlName],
		systemdUnit(c),
		shortID(c.ID), strings.Trim(path.Base(c.CgroupPath), "./"),
	} {
		// A name of blanks, or of bytes that are no text, is none.
		if name = strings.TrimSpace(strings.ToValidUTF8(name, "")); name != "" {
			return name
		}
	}
	return "unknown"
}

// finish makes valid labels out of any: names sanitised, values bounded, no more than MaxLabels, service_name set.
func (l *Labeler) finish(m map[string]string, service string) sink.Labels {
	out := make(sink.Labels, len(m)+1)
	var rest []string // what is neither stoker's nor static
	for _, name := range sortedKeys(m) {
		value, shortened := text(m[name], MaxValueBytes)
		clean := SanitizeName(name)
		if len(clean) > MaxNameBytes {
			clean, shortened = clean[:MaxNameBytes], true
		}
		if shortened {
			l.cut.Add(1)
		}
		if value == "" {
			continue
		}
		if _, taken := out[clean]; taken || clean != name && m[clean] != "" {
			l.clashes.Add(1)
			continue
		}
		out[clean] = value
		if _, static := l.cfg.Static[clean]; !static && !slices.Contains(own, clean) {
			rest = append(rest, clean)
		}
	}
	if out[ServiceName] == "" {
		out[ServiceName], _ = text(service, MaxValueBytes)
	}
	for len(out) > MaxLabels && len(rest) > 0 {
		delete(out, rest[len(rest)-1])
		rest = rest[:len(rest)-1]
		l.dropped.Add(1)
	}
	return out
}

// text returns s as a label value: UTF-8, at most limit bytes, cut between characters.
func text(s string, limit int) (out string, changed bool) {
	if len(s) <= limit && utf8.ValidString(s) {
		return s, false
	}
	if len(s) > 2*limit { // do not scan what is thrown away
		s = s[:2*limit]
	}
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) > limit {
		s = s[:limit]
		for !utf8.ValidString(s) {
			s = s[:len(s)-1]
		}
	}
	return s, true
}

// SanitizeName makes a label name of any text as Prometheus' service discovery does: every character outside
// [a-zA-Z0-9_] becomes _. A digit in front gets a _ before it; the empty name becomes "_".
func SanitizeName(s string) string {
	if validName(s) {
		return s
	}
	s = metaName(s)
	if s == "" || '0' <= s[0] && s[0] <= '9' {
		s = "_" + s
	}
	return s
}

func validName(s string) bool {
	if s == "" || '0' <= s[0] && s[0] <= '9' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if c != '_' && (c < 'a' || 'z' < c) && (c < 'A' || 'Z' < c) && (c < '0' || '9' < c) {
			return false
		}
	}
	return true
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
