package registry

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/stoker-profiler/stoker/runtime/container"
)

// What a source says that is too long or no text is cut and counted, said once, and the container is profiled like any other.
func TestWhatASourceSaysIsBounded(t *testing.T) {
	var log bytes.Buffer
	k := newKernel()
	r := New(Config{Scopes: k, Frequency: 97, ContainerLabels: allowAll, Log: slog.New(slog.NewTextHandler(&log, nil))})
	for i := range 100 {
		r.Apply(container.Event{Type: container.Upsert, Source: "s", Complete: true, Container: container.Container{ID: fmt.Sprint(i), CgroupID: uint64(i + 1),
			Name: "evil\x1b[2Jname", Labels: map[string]string{"big": strings.Repeat("x", 64<<10), "stoker.service": "shop"}}})
		r.Apply(container.Event{Type: container.Upsert, Source: "s", Container: container.Container{ID: "x\xff" + fmt.Sprint(i), CgroupID: uint64(i + 1001)}})
	}
	if st := r.Stats(); st.Cut != 200 || st.Refused != 100 || len(r.List()) != 100 || len(k.scopes) != 100 {
		t.Errorf("stats %+v, %d containers, %d scopes", st, len(r.List()), len(k.scopes))
	}
	for _, rec := range r.List() {
		if rec.State != Profiled || rec.Name != "evil�[2Jname" || len(rec.Labels["big"]) != container.MaxValue || rec.Service != "shop" {
			t.Fatalf("record %.300q", fmt.Sprint(rec))
		}
	}
	if n := strings.Count(log.String(), "level="); n != 1 || len(log.String()) > 500 || !strings.Contains(log.String(), "source=s") {
		t.Errorf("%d lines: %.2000s", n, log.String())
	}
}

// A source that tells of endless containers gets so much room and no more; others do not notice, and the room is free again when
// its containers are gone.
func TestASourceGetsSoMuchRoom(t *testing.T) {
	k := newKernel()
	r := New(Config{Scopes: k, Frequency: 97, ContainerLabels: allowAll})
	say := func(source string, typ container.EventType, id string, cgroup uint64, labels map[string]string) {
		r.Apply(container.Event{Type: typ, Source: source, Complete: true, Container: container.Container{ID: id, CgroupID: cgroup, Labels: labels}})
	}
	const told = 20_000
	for i := range told {
		say("endless", container.Upsert, fmt.Sprint("e", i), 0, map[string]string{"a": strings.Repeat(fmt.Sprint(i), 1000), "stoker.enable": "false"})
	}
	say("honest", container.Upsert, "h", 7, map[string]string{"a": "b"})
	size := func() (bytes int) {
		r.mu.Lock()
		defer r.mu.Unlock()
		for rec := range r.records {
			bytes += rec.c.Size()
		}
		return bytes
	}
	st := r.Stats()
	if len(r.List()) != container.MaxContainers+1 || st.TooMany != told-container.MaxContainers || st.Stripped == 0 {
		t.Errorf("%d containers, stats %+v", len(r.List()), st)
	}
	if b := size(); b > container.MaxTold+container.MaxContainers*200 {
		t.Errorf("%d bytes are kept", b)
	}
	stripped := 0
	for _, rec := range r.List() {
		if rec.ID != "h" && rec.Labels["stoker.enable"] != "false" {
			t.Fatalf("an opt-out was lost: %.300q", fmt.Sprint(rec))
		}
		if len(rec.Labels) == 1 {
			stripped++
		}
	}
	if k.id(7) == 0 || stripped < 1000 {
		t.Errorf("the honest source's container has scope %d; %d are stripped", k.id(7), stripped)
	}
	// What is known may be told again, with what it had, and restarts count as well.
	before := r.Stats()
	r.WindowEnd()
	for i := range 10 {
		say("endless", container.Upsert, fmt.Sprint("e", i), 0, map[string]string{"a": strings.Repeat(fmt.Sprint(i), 1000), "stoker.enable": "false"})
		say("endless", container.Upsert, fmt.Sprint("new", i), uint64(100+i), nil)
	}
	if st := r.Stats(); st.TooMany != before.TooMany+10 || st.Stripped != before.Stripped || k.id(100) != 0 {
		t.Errorf("stats %+v, before %+v", st, before)
	}
	for i := range told {
		say("endless", container.Gone, fmt.Sprint("e", i), 0, nil)
	}
	for range keptWindows + 2 {
		r.WindowEnd()
	}
	say("endless", container.Upsert, "new", 100, map[string]string{"a": "b"})
	if rec, ok := r.Lookup(k.id(100)); !ok || rec.Labels["a"] != "b" || len(r.List()) != 2 {
		t.Errorf("%+v; %d containers", rec, len(r.List()))
	}
}
