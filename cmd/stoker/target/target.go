// Package target understands TARGET, the words with which `stoker record` names what to sample: a container's name, its id or
// the beginning of it, name=…, label=value, or pid:N. The command line checks the form, the agent resolves the names; both
// through this package, so that a word means the same with and without an agent. It keeps no state and does no I/O of its
// own; its values are not changed after they are made and may be used by many goroutines.
package target

import (
	"fmt"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/stoker-profiler/stoker/runtime/container"
	"github.com/stoker-profiler/stoker/sink/web"
)

// Target is one TARGET as it was written.
type Target struct {
	text string
	pid  int    // pid:N
	key  string // name=…, label=value
	word string // the value of key, or a bare name or id
}

// maxBytes bounds one TARGET: no name, id or label that a runtime takes is longer.
const maxBytes = 4096

// Parse checks the form of TARGETs. The error is a [*web.Error] with status 400: the caller can mend it.
func Parse(texts []string) ([]Target, error) {
	targets := make([]Target, 0, len(texts))
	for _, text := range texts {
		t := Target{text: text, word: text}
		pid, isPID := strings.CutPrefix(text, "pid:")
		key, value, isPair := strings.Cut(text, "=")
		switch {
		case text == "" || len(text) > maxBytes:
			return nil, malformed(text, "it is empty or too long")
		case isPID:
			n, err := strconv.Atoi(pid)
			if err != nil || n < 1 || n > 1<<22 { // the kernel's own limit, PID_MAX_LIMIT
				return nil, malformed(text, "behind pid: stands the number of a process")
			}
			t.pid = n
		case isPair && (key == "" || value == ""):
			return nil, malformed(text, "a name and a value stand around the =")
		case isPair:
			t.key, t.word = key, value
		}
		targets = append(targets, t)
	}
	return targets, nil
}

func malformed(text, why string) error {
	return &web.Error{
		Status:  http.StatusBadRequest,
		Message: fmt.Sprintf("TARGET %q: %s", text[:min(len(text), 80)], why),
		Remedy:  "write a container's name, its id or the beginning of it, name=NAME, LABEL=VALUE or pid:N",
	}
}

// Selection says which containers and processes the targets mean. It also decides about containers that start later: a
// label selects them as they come.
type Selection struct{ wants []want }

// want is one target, resolved: what a bare word means (a name or an id) is settled by the containers at hand.
type want struct {
	target Target
	id     string // set: the container with this id
	cgroup string // set: the cgroup of process target.pid
}

// Resolve settles what each target means among the containers that exist. A target that means none of them is an error: a
// [*web.Error] with status 404 that names the containers there are. No targets at all select everything. cgroupOf says
// which cgroup a process is in (cgroupfs.Hierarchy.OfPID).
func Resolve(targets []Target, containers []container.Container, cgroupOf func(pid int) (string, error)) (*Selection, error) {
	s := &Selection{}
	for _, t := range targets {
		w := want{target: t}
		if t.pid != 0 {
			var err error
			if w.cgroup, err = cgroupOf(t.pid); err != nil {
				return nil, notFound(containers, "there is no process %d: %v", t.pid, err)
			}
			if !slices.ContainsFunc(containers, w.container) {
				return nil, notFound(containers, "process %d (cgroup %s) belongs to no container that is profiled", t.pid, w.cgroup)
			}
			s.wants = append(s.wants, w)
			continue
		}
		if !slices.ContainsFunc(containers, w.container) {
			ids := map[string]bool{}
			if t.key == "" {
				for _, c := range containers {
					if strings.HasPrefix(c.ID, t.word) {
						ids[c.ID] = true
						w.id = c.ID
					}
				}
			}
			switch len(ids) {
			case 0:
				return nil, notFound(containers, "no container is meant by %q", t.text)
			case 1:
			default:
				return nil, notFound(containers, "%q is the beginning of %d ids; write more of it", t.text, len(ids))
			}
		}
		s.wants = append(s.wants, w)
	}
	return s, nil
}

// Container reports whether any process of c is selected.
func (s *Selection) Container(c container.Container) bool {
	return len(s.wants) == 0 || slices.ContainsFunc(s.wants, func(w want) bool { return w.container(c) })
}

// Process reports whether process pid of c, as the host numbers it, is selected.
func (s *Selection) Process(c container.Container, pid uint32) bool {
	return len(s.wants) == 0 || slices.ContainsFunc(s.wants, func(w want) bool {
		return w.container(c) && (w.target.pid == 0 || uint32(w.target.pid) == pid)
	})
}

func (w want) container(c container.Container) bool {
	t := w.target
	switch {
	case w.id != "":
		return c.ID == w.id
	case w.cgroup != "":
		return c.CgroupPath != "" && within(w.cgroup, c.CgroupPath)
	case t.key == "name":
		return named(c, t.word)
	case t.key != "":
		return c.Labels[t.key] == t.word || c.Pod.Labels[t.key] == t.word
	}
	return c.ID == t.word || named(c, t.word)
}

// named reports whether people call c by that name.
func named(c container.Container, name string) bool {
	return slices.Contains([]string{c.Name, c.KubernetesContainer, c.Pod.Name}, name)
}

// within reports whether cgroup path p is dir or below it: nested cgroups belong to their container.
func within(p, dir string) bool {
	p, dir = path.Clean("/"+p), path.Clean("/"+dir)
	return p == dir || dir != "/" && strings.HasPrefix(p, dir+"/")
}

// notFound lists at most this many names: a node has hundreds.
const maxNames = 20

func notFound(containers []container.Container, format string, args ...any) error {
	var names []string
	for _, c := range containers {
		names = append(names, Name(c.Name, c.KubernetesContainer, c.ID))
	}
	slices.Sort(names)
	names = slices.Compact(names)
	remedy := "no container is known here; `stoker ps` shows what is found"
	if more := len(names) - maxNames; more > 0 {
		remedy = fmt.Sprintf("the containers are %s and %d more, see `stoker ps`", strings.Join(names[:maxNames], ", "), more)
	} else if len(names) > 0 {
		remedy = "the containers are " + strings.Join(names, ", ")
	}
	return &web.Error{Status: http.StatusNotFound, Message: fmt.Sprintf(format, args...), Remedy: remedy}
}

// Name is what to call a container in a list: its name, else its name in the pod, else the first 12 digits of its id, which
// is as much as Docker shows.
func Name(name, kubernetes, id string) string {
	switch {
	case name != "":
		return name
	case kubernetes != "":
		return kubernetes
	}
	return id[:min(len(id), 12)]
}
