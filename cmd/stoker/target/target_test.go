package target

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stoker-profiler/stoker/runtime/container"
	"github.com/stoker-profiler/stoker/sink/web"
)

var node = []container.Container{
	{ID: "3f9c00aa11", Name: "web", CgroupPath: "/docker/3f9c00aa11", Labels: map[string]string{"team": "shop"}},
	{ID: "3f77bb22", Name: "db", CgroupPath: "/docker/3f77bb22", Labels: map[string]string{"team": "data", "pid": "x"}},
	{ID: "db77", Name: "other", CgroupPath: "/docker/db77"},
	{ID: "k1", KubernetesContainer: "app", CgroupPath: "/kubepods/k1", Pod: container.Pod{Name: "app-7d4f", Labels: map[string]string{"team": "shop"}}},
	{ID: "0123456789abcdef", CgroupPath: "/docker/0123456789abcdef"},
	{ID: "nocgroup"},
}

func cgroupOf(pid int) (string, error) {
	switch pid {
	case 7:
		return "/docker/3f9c00aa11/nested/deeper", nil
	case 8:
		return "/system.slice/sshd.service", nil
	case 9:
		return "/docker/3f9c00aa11zz", nil // only looks like the first
	}
	return "", errors.New("no such process")
}

// TestTargetsMean is the table of the command line's TARGET.
func TestTargetsMean(t *testing.T) {
	for _, c := range []struct {
		targets string // separated by |
		want    string // ids in the node's order, or status and part of the message
	}{
		{"", "3f9c00aa11 3f77bb22 db77 k1 0123456789abcdef nocgroup"},
		{"web", "3f9c00aa11"},
		{"name=web", "3f9c00aa11"},
		{"db", "3f77bb22"}, // the name wins over the beginning of an id
		{"db7", "db77"},
		{"3f9c00aa11", "3f9c00aa11"},
		{"3f9", "3f9c00aa11"},
		{"3f", "404 beginning of 2 ids"},
		{"app", "k1"},
		{"app-7d4f", "k1"},
		{"team=shop", "3f9c00aa11 k1"},
		{"team=shop|db", "3f9c00aa11 3f77bb22 k1"},
		{"team=none", "404 the containers are 0123456789ab, app, db, nocgroup, other, web"},
		{"webb", `404 no container is meant by "webb"`},
		{"pid:7", "3f9c00aa11"},
		{"pid:8", "404 belongs to no container"},
		{"pid:9", "404 belongs to no container"},
		{"pid:99", "404 there is no process 99"},
		{"pid=x", "3f77bb22"},
		{"pid:x", "400 number of a process"},
		{"pid:0", "400 number of a process"},
		{"=x", "400 around the ="},
		{"x=", "400 around the ="},
		{"web|", "400 empty"},
	} {
		t.Run(c.targets, func(t *testing.T) {
			got := resolve(t, c.targets)
			if got != c.want && !(strings.HasPrefix(c.want, "40") && strings.HasPrefix(got, c.want[:4]) && strings.Contains(got, c.want[4:])) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func resolve(t *testing.T, text string) string {
	t.Helper()
	var texts []string
	if text != "" {
		texts = strings.Split(text, "|")
	}
	targets, err := Parse(texts)
	if err != nil {
		return explain(t, err)
	}
	s, err := Resolve(targets, node, cgroupOf)
	if err != nil {
		return explain(t, err)
	}
	var ids []string
	for _, c := range node {
		if s.Container(c) {
			ids = append(ids, c.ID)
		}
	}
	return strings.Join(ids, " ")
}

func explain(t *testing.T, err error) string {
	t.Helper()
	var e *web.Error
	if !errors.As(err, &e) || e.Remedy == "" {
		t.Fatalf("%T %v is no *web.Error with a remedy", err, err)
	}
	return fmt.Sprint(e.Status, " ", e.Error())
}

// TestContainersThatStartLater: a label selects what comes, an id does not; a process is one process.
func TestContainersThatStartLater(t *testing.T) {
	targets, err := Parse([]string{"team=shop", "db7", "pid:7"})
	if err != nil {
		t.Fatal(err)
	}
	s, err := Resolve(targets, node, cgroupOf)
	if err != nil {
		t.Fatal(err)
	}
	if late := (container.Container{ID: "new", Labels: map[string]string{"team": "shop"}}); !s.Process(late, 1) {
		t.Error("a container with the label that started later is not selected")
	}
	if late := (container.Container{ID: "db78"}); s.Container(late) {
		t.Error("a container whose id begins alike is selected")
	}
	one, err := Parse([]string{"pid:7"})
	if err != nil {
		t.Fatal(err)
	}
	if s, err = Resolve(one, node, cgroupOf); err != nil {
		t.Fatal(err)
	}
	if !s.Process(node[0], 7) || s.Process(node[0], 10) || s.Process(node[1], 7) {
		t.Error("pid:7 means process 7 of the first container and nothing else")
	}
}

func TestManyNamesAreCut(t *testing.T) {
	var many []container.Container
	for i := range 30 {
		many = append(many, container.Container{ID: fmt.Sprint(i), Name: fmt.Sprintf("c%02d", i)})
	}
	targets, err := Parse([]string{"x"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = Resolve(targets, many, cgroupOf)
	if err == nil || !strings.Contains(err.Error(), "c19 and 10 more") {
		t.Errorf("got %v", err)
	}
	if _, err = Resolve(targets, nil, cgroupOf); err == nil || !strings.Contains(err.Error(), "no container is known here") {
		t.Errorf("without containers: %v", err)
	}
}

// FuzzParse: no text makes it crash, and what it takes can be resolved or is refused with a remedy.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"web", "pid:7", "name=web", "a=b=c", "pid:-1", "pid:99999999999999999999", "", "=", "3f"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		targets, err := Parse([]string{s})
		if err == nil {
			_, err = Resolve(targets, node, cgroupOf)
		}
		if e := (*web.Error)(nil); err != nil && (!errors.As(err, &e) || e.Status != http.StatusBadRequest && e.Status != http.StatusNotFound) {
			t.Errorf("%q: %v", s, err)
		}
	})
}
