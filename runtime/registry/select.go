package registry

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/stoker-profiler/stoker/runtime/container"
)

// Labels with which a container steers its own profiling, as far as LabelPolicy allows. They are looked for among its labels,
// its annotations, and those of its pod, in this order.
const (
	LabelEnable    = "stoker.enable"
	LabelService   = "stoker.service"
	LabelFrequency = "stoker.frequency"
	LabelTenant    = "stoker.tenant"
)

// Rule is one line of targets. Every field that is set must match; a rule without any matches all containers. Patterns are
// those of [path.Match], but * and ? also match a slash. The first rule that matches a container decides. A container that no
// rule matches is profiled, unless there is a rule that is not an exclusion: then those that are to be profiled were named.
type Rule struct {
	Exclude   bool
	Runtime   string            // pattern
	User      string            // pattern; user id in decimal whose rootless engine runs it, 0 for root's
	Namespace string            // pattern; of the pod, or of containerd where there is no pod
	Pod       string            // pattern; name of the pod
	Name      string            // pattern; name or id of the container
	Image     string            // pattern; reference as the runtime spells it
	Label     map[string]string // label → pattern of its value; the container's, then its pod's
}

// LabelPolicy says how far a container may steer itself. The zero value allows nothing.
type LabelPolicy struct {
	Allow        []string // "enable", "service", "frequency"
	Tenants      []string // which tenants stoker.tenant may choose
	MaxFrequency int      // the most that stoker.frequency may ask for; 0 means no more than what others get
}

func (p LabelPolicy) clone() LabelPolicy {
	p.Allow, p.Tenants = slices.Clone(p.Allow), slices.Clone(p.Tenants)
	return p
}

// CheckRules returns an error that names each pattern that can never match because it is malformed.
func CheckRules(rules []Rule) error {
	var errs []error
	for i := range rules {
		for _, f := range rules[i].fields() {
			if _, err := path.Match(f.pattern, ""); err != nil {
				errs = append(errs, fmt.Errorf("targets[%d].%s: pattern %q: %w; write [ as [[]", i, f.name, f.pattern, err))
			}
		}
	}
	return errors.Join(errs...)
}

// field is one condition of a rule.
type field struct {
	name, pattern string
	values        func(*container.Container) []string // any of them may match
}

func (rule *Rule) fields() []field {
	var fields []field
	add := func(name, pattern string, values func(c *container.Container) []string) {
		if pattern != "" {
			fields = append(fields, field{name, pattern, values})
		}
	}
	add("runtime", rule.Runtime, func(c *container.Container) []string { return []string{c.Runtime} })
	add("user", rule.User, func(c *container.Container) []string { return []string{cmp.Or(c.User, "0")} })
	add("namespace", rule.Namespace, func(c *container.Container) []string {
		if c.Pod.Namespace != "" {
			return []string{c.Pod.Namespace}
		}
		return []string{c.Namespace}
	})
	add("pod", rule.Pod, func(c *container.Container) []string { return []string{c.Pod.Name} })
	add("name", rule.Name, func(c *container.Container) []string { return []string{c.Name, c.KubernetesContainer, c.ID} })
	add("image", rule.Image, func(c *container.Container) []string { return []string{c.Image} })
	for _, name := range slices.Sorted(maps.Keys(rule.Label)) {
		pattern := rule.Label[name]
		fields = append(fields, field{"label " + name, pattern, func(c *container.Container) []string {
			if v, ok := c.Labels[name]; ok {
				return []string{v}
			}
			if v, ok := c.Pod.Labels[name]; ok {
				return []string{v}
			}
			return nil // not there: no pattern matches, not even *
		}})
	}
	return fields
}

func (rule *Rule) matches(c *container.Container) bool {
	for _, f := range rule.fields() {
		if !slices.ContainsFunc(f.values(c), func(v string) bool { return glob(f.pattern, v) }) {
			return false
		}
	}
	return true
}

// glob is path.Match without the special meaning of the slash. A malformed pattern matches nothing.
func glob(pattern, s string) bool {
	// NUL is in no name, so it can stand for the slash.
	ok, err := path.Match(strings.ReplaceAll(pattern, "/", "\x00"), strings.ReplaceAll(s, "/", "\x00"))
	return ok && err == nil
}

func (rule *Rule) String() string {
	var parts []string
	for _, f := range rule.fields() {
		parts = append(parts, f.name+": "+f.pattern)
	}
	if len(parts) == 0 {
		return "everything"
	}
	return strings.Join(parts, ", ")
}

// decision is what follows from what is known about a container.
type decision struct {
	excluded        bool
	reason          string
	notes           []string
	thinning        uint32
	asked           int
	hz              int // what it is to get: asked, as far as allowed
	service, tenant string
}

func (r *Registry) decision(rec *record) decision {
	d := decision{hz: r.frequency}
	c := &rec.c
	r.policy.obey(&d, c)
	d.thinning = thinning(r.event, d.hz)
	exclude := func(format string, args ...any) { d.excluded, d.reason = true, fmt.Sprintf(format, args...) }
	switch {
	case c.Sandbox:
		exclude("it only holds its pod's namespaces")
	case rec.shares != nil:
		exclude("it is in the same cgroup as %s, which has the samples of both; give it a cgroup of its own", displayName(&rec.shares.c))
	case c.CgroupPath == rootCgroup:
		exclude("it is in the root cgroup like processes outside of containers; start it with a cgroup of its own")
	case c.CgroupID == 0 && c.NoCgroup != "":
		exclude("it has no cgroup of its own: %s", c.NoCgroup)
	case d.disabled(r.policy, c): // as soon as anybody says so
		exclude("its label %s says so", LabelEnable)
	case !rec.described:
		// Provisional: rules may only judge what is known.
	default:
		if rule, i := r.first(c); rule != nil && rule.Exclude {
			exclude("rule %d of targets excludes %s", i+1, rule)
		} else if rule == nil && slices.ContainsFunc(r.rules, func(rule Rule) bool { return !rule.Exclude }) {
			exclude("no rule of targets names it")
		}
		if v, ok := ownLabel(c, LabelEnable); ok && d.excluded {
			if enable, err := strconv.ParseBool(v); err == nil && enable {
				d.note("%s does not overrule targets", LabelEnable, v) // an image's labels are a stranger's words
			}
		}
	}
	return d
}

// first returns the first rule that matches.
func (r *Registry) first(c *container.Container) (*Rule, int) {
	for i := range r.rules {
		if r.rules[i].matches(c) {
			return &r.rules[i], i
		}
	}
	return nil, 0
}

// disabled reports whether the container does not want to be profiled, and may say so. One no is enough, whoever else says yes: its
// image, its pod.
func (d *decision) disabled(p LabelPolicy, c *container.Container) bool {
	no := false
	for value := range ownLabels(c, LabelEnable) {
		enable, err := strconv.ParseBool(value)
		switch {
		case err != nil:
			d.note("%s is neither true nor false", LabelEnable, value)
		case enable:
		case !slices.Contains(p.Allow, "enable"):
			d.note("%s is not allowed by container_labels", LabelEnable, value)
		default:
			no = true
		}
	}
	return no
}

// obey reads a container's labels about how it is profiled.
func (p LabelPolicy) obey(d *decision, c *container.Container) {
	if v, ok := ownLabel(c, LabelService); ok {
		if slices.Contains(p.Allow, "service") {
			d.service = v
		} else {
			d.note("%s is not allowed by container_labels", LabelService, v)
		}
	}
	if v, ok := ownLabel(c, LabelTenant); ok {
		if slices.Contains(p.Tenants, v) {
			d.tenant = v
		} else {
			d.note("%s is not among the tenants of container_labels", LabelTenant, v)
		}
	}
	if v, ok := ownLabel(c, LabelFrequency); ok {
		hz, err := strconv.Atoi(v)
		switch {
		case err != nil || hz < 1:
			d.note("%s is not a whole number of samples per second", LabelFrequency, v)
		case !slices.Contains(p.Allow, "frequency"):
			d.asked = hz
			d.note("%s is not allowed by container_labels", LabelFrequency, v)
		default:
			d.asked = hz
			if p.MaxFrequency == 0 {
				p.MaxFrequency = d.hz
			}
			d.hz = min(hz, p.MaxFrequency)
		}
	}
}

// maxNote bounds what is repeated of a container's words.
const maxNote = 80

func (d *decision) note(format, label, value string) {
	if len(value) > maxNote {
		value = value[:maxNote] + "…"
	}
	d.notes = append(d.notes, fmt.Sprintf(format, fmt.Sprintf("%s=%q", label, value)))
}

// ownLabels are the values of a label by which a container steers itself, in the order in which they count.
func ownLabels(c *container.Container, name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, labels := range []map[string]string{c.Labels, c.Annotations, c.Pod.Labels, c.Pod.Annotations} {
			if v, ok := labels[name]; ok && !yield(v) {
				return
			}
		}
	}
}

// ownLabel is the first of them.
func ownLabel(c *container.Container, name string) (string, bool) {
	for v := range ownLabels(c, name) {
		return v, true
	}
	return "", false
}

// thinning says that one in n samples of the event is to be taken for a frequency: the nearest that is possible.
func thinning(eventHz, hz int) uint32 {
	return uint32(max(1, (eventHz+hz/2)/hz))
}

// given is the frequency that a thinning leaves, to the nearest whole number, but not 0.
func given(eventHz int, thinning uint32) int {
	n := int(max(1, thinning))
	return max(1, (eventHz+n/2)/n)
}
