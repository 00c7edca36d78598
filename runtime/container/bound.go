package container

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// What a container is called and labelled with is the words of strangers: whoever may run a container, or built an image, or
// answers on a runtime's socket. These bounds hold for every source. They are far above what engines and Kubernetes allow or
// people use; the largest annotations, those of tools that note a whole manifest, lose their end.
const (
	// MaxID bounds an id in bytes. A longer one, or one that cannot be printed, is none: what is cut no longer names anything.
	MaxID = 1 << 10
	// MaxText bounds a name, an image reference and the like, in bytes.
	MaxText = 1 << 10
	// MaxPath bounds a cgroup's path in bytes: the kernel's own PATH_MAX.
	MaxPath = 4 << 10
	// MaxKey and MaxValue bound one label or annotation, in bytes. A key is not cut, for it would be another key: it is left out.
	MaxKey, MaxValue = 1 << 10, 16 << 10
	// MaxLabels and MaxLabelBytes bound all labels, or all annotations, of a container or pod. The shortest are kept, and before all
	// others those that steer stoker.
	MaxLabels, MaxLabelBytes = 512, 64 << 10
)

const (
	// MaxContainers bounds how many containers one source may have remembered, runs that are over included. A node runs some hundreds;
	// one that starts a hundred a second has three thousand.
	MaxContainers = 16384
	// MaxTold bounds the text that one source may have remembered, in bytes. A thousand containers of Kubernetes with long annotations
	// have a third of it.
	MaxTold = 32 << 20
)

// Room counts the text that one source keeps in a table of its own. The zero value is empty. It belongs to whom the table does.
type Room struct{ bytes int }

// Take makes room for what is known of a container that took before bytes of it, and returns how many it takes now. Where there is
// no room for more, the container is stripped.
func (r *Room) Take(c *Container, before int) (size int) {
	if size = c.Size(); size > before && r.bytes-before+size > MaxTold {
		c.Strip()
		size = c.Size()
	}
	r.bytes += size - before
	return size
}

// Leave gives back what a container took.
func (r *Room) Leave(size int) { r.bytes -= size }

// steering are the labels and annotations that are kept in any case: what a container, or its owner, tells stoker to do with it.
var steering = []string{"stoker.enable", "stoker.service", "stoker.frequency", "stoker.tenant", "pyroscope.io/service_name"}

// Bound brings a container within the bounds and makes all its text valid UTF-8, with the replacement character in place of what
// is not, and of control characters in what people read in a terminal. It returns how many texts, labels and annotations were
// cut, mended or left out. The error says that the container is none, because its id or its cgroup cannot be.
//
// Maps are not written to: those that change are made anew. What is within the bounds is not copied.
func (c *Container) Bound() (changed int, err error) {
	switch {
	case len(c.ID) > MaxID:
		return 0, fmt.Errorf("the id %.80q… is longer than %d bytes", c.ID, MaxID)
	case !printable(c.ID):
		return 0, fmt.Errorf("the id %.80q cannot be printed", c.ID)
	case len(c.CgroupPath) > MaxPath:
		return 0, fmt.Errorf("container %.80q: the cgroup %.80q… is longer than %d bytes", c.ID, c.CgroupPath, MaxPath)
	}
	for _, s := range []*string{&c.Runtime, &c.Namespace, &c.Name, &c.Image, &c.KubernetesContainer, &c.SystemdUnit, &c.NoCgroup, &c.User, &c.Pod.Name, &c.Pod.Namespace, &c.Pod.UID} {
		if len(*s) <= MaxText && printable(*s) {
			continue
		}
		changed++
		*s = cutText(strings.Map(func(r rune) rune {
			if !unicode.IsPrint(r) {
				return utf8.RuneError
			}
			return r
		}, cutText(*s, 4*MaxText)), MaxText)
	}
	for _, m := range []*map[string]string{&c.Labels, &c.Annotations, &c.Env, &c.Pod.Labels, &c.Pod.Annotations} {
		var n int
		*m, n = boundMap(*m)
		changed += n
	}
	return changed, nil
}

// printable reports whether a text is valid and has nothing that moves a terminal's cursor.
func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// cutText shortens a text to at most that many bytes, between two characters.
func cutText(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return strings.Clone(s[:n]) // not the memory of the whole
}

func boundMap(m map[string]string) (bounded map[string]string, changed int) {
	bytes := 0
	for k, v := range m {
		bytes += len(k) + len(v)
		if len(k) > MaxKey || len(v) > MaxValue || !utf8.ValidString(k) || !utf8.ValidString(v) {
			changed++
		}
	}
	if changed == 0 && len(m) <= MaxLabels && bytes <= MaxLabelBytes {
		return m, 0
	}
	changed = 0
	out := make(map[string]string, min(len(m), MaxLabels))
	for k, v := range m {
		if len(k) > MaxKey || !utf8.ValidString(k) {
			changed++
			continue
		}
		mended := cutText(strings.ToValidUTF8(cutText(v, MaxValue), "�"), MaxValue)
		if mended != v {
			changed++
		}
		out[k] = mended
	}
	keep := slices.SortedFunc(maps.Keys(out), func(a, b string) int {
		return cmp.Or(-compareBool(slices.Contains(steering, a), slices.Contains(steering, b)), cmp.Compare(len(a)+len(out[a]), len(b)+len(out[b])), cmp.Compare(a, b))
	})
	bytes = 0
	for i, k := range keep {
		if bytes += len(k) + len(out[k]); i >= MaxLabels || bytes > MaxLabelBytes {
			delete(out, k)
			changed++
		}
	}
	return out, changed
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// Strip leaves out all labels, annotations and variables but those that steer stoker: of a container of a source that has told more
// than can be kept. Maps are not written to.
func (c *Container) Strip() {
	for _, m := range []*map[string]string{&c.Labels, &c.Annotations, &c.Env, &c.Pod.Labels, &c.Pod.Annotations} {
		if *m == nil {
			continue
		}
		kept := map[string]string{}
		for _, k := range steering {
			if v, ok := (*m)[k]; ok {
				kept[k] = v
			}
		}
		*m = kept
	}
}

// mapEntry is about what an entry of a map costs besides its text, in bytes.
const mapEntry = 48

// Size is about how many bytes a container's texts take. It counts what is shared with others as well.
func (c *Container) Size() int {
	n := 0
	for _, s := range []string{c.ID, c.Runtime, c.Namespace, c.Name, c.Image, c.KubernetesContainer, c.SystemdUnit, c.NoCgroup, c.User, c.CgroupPath, c.Pod.Name, c.Pod.Namespace, c.Pod.UID} {
		n += len(s)
	}
	for _, m := range []map[string]string{c.Labels, c.Annotations, c.Env, c.Pod.Labels, c.Pod.Annotations} {
		for k, v := range m {
			n += len(k) + len(v) + mapEntry
		}
	}
	return n
}
