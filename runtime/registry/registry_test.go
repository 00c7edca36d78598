package registry

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/runtime/container"
)

// kernel stands for the kernel's map of scopes.
type kernel struct {
	mu      sync.Mutex
	next    uint32
	scopes  map[uint64]uint32 // cgroup → scope id
	barred  map[uint64]bool   // cgroups kept out of the scope they lie in
	thin    map[uint32]uint32 // scope id → thinning, for ever
	refuses error
}

func newKernel() *kernel {
	return &kernel{scopes: map[uint64]uint32{}, barred: map[uint64]bool{}, thin: map[uint32]uint32{}}
}

func (k *kernel) Add(cgroup uint64, thinning uint32) (uint32, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.refuses != nil {
		return 0, k.refuses
	}
	k.next++
	k.scopes[cgroup], k.thin[k.next] = k.next, thinning
	delete(k.barred, cgroup)
	return k.next, nil
}

func (k *kernel) Bar(cgroup uint64) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.refuses != nil {
		return k.refuses
	}
	delete(k.scopes, cgroup)
	k.barred[cgroup] = true
	return nil
}

func (k *kernel) Remove(cgroup uint64) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.scopes, cgroup)
	delete(k.barred, cgroup)
	return nil
}

func (k *kernel) id(cgroup uint64) uint32 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.scopes[cgroup]
}

// bench is a registry with a kernel and a clock that tests move.
type bench struct {
	*Registry
	k   *kernel
	now time.Time
	t   *testing.T
}

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func newBench(t *testing.T, cfg Config) *bench {
	b := &bench{k: newKernel(), now: epoch, t: t}
	cfg.Scopes = b.k
	if cfg.Frequency == 0 {
		cfg.Frequency = 97
	}
	cfg.Now = func() time.Time { b.now = b.now.Add(time.Microsecond); return b.now }
	b.Registry = New(cfg)
	return b
}

var allowAll = LabelPolicy{Allow: []string{"enable", "service", "frequency"}, Tenants: []string{"blue"}, MaxFrequency: 199}

func (b *bench) say(source string, typ container.EventType, c container.Container, options ...func(*container.Event)) {
	b.t.Helper()
	b.now = b.now.Add(time.Millisecond)
	e := container.Event{Type: typ, Source: source, Container: c, At: b.now, Complete: typ == container.Upsert}
	for _, o := range options {
		o(&e)
	}
	b.Apply(e)
}

func partial(e *container.Event)  { e.Complete = false }
func inferred(e *container.Event) { e.Complete, e.Inferred = false, true }

// one returns the only container in the list.
func (b *bench) one() Record {
	b.t.Helper()
	l := b.List()
	if len(l) != 1 {
		b.t.Fatalf("%d containers are listed, want one: %+v", len(l), l)
	}
	return l[0]
}

func (b *bench) want(state State, inScope ...uint64) Record {
	b.t.Helper()
	rec := b.one()
	if rec.State != state {
		b.t.Errorf("state is %v (%s), want %v", rec.State, rec.Reason, state)
	}
	b.wantScopes(inScope...)
	return rec
}

func (b *bench) wantScopes(cgroups ...uint64) {
	b.t.Helper()
	b.k.mu.Lock()
	defer b.k.mu.Unlock()
	var got []uint64
	for cgroup := range b.k.scopes {
		got = append(got, cgroup)
	}
	slices.Sort(got)
	if !slices.Equal(got, cgroups) {
		b.t.Errorf("cgroups %v are in scope, want %v", got, cgroups)
	}
}

var id64 = strings.Repeat("0123456789abcdef", 4)

func TestAContainerIsInScopeWhenApplyReturns(t *testing.T) {
	b := newBench(t, Config{})
	b.say("containerd", container.Upsert, container.Container{ID: "c1", Name: "web", Runtime: "containerd", CgroupID: 7, PID: 70})
	rec := b.want(Profiled, 7)
	if rec.ScopeID == 0 || rec.InScopeAt.IsZero() || rec.InScopeAt.Before(rec.AnnouncedAt) || !rec.Described || rec.GivenFrequency != 97 {
		t.Errorf("record %+v", rec)
	}
	got, ok := b.Lookup(rec.ScopeID)
	if !ok || got.Name != "web" || got.State != Profiled || !got.Profiled() {
		t.Errorf("Lookup: %+v, %t", got, ok)
	}
	if _, ok := b.Lookup(99); ok {
		t.Error("a scope that never was is known")
	}
	if n := b.k.next; n != 1 {
		t.Errorf("%d scopes were made, want 1", n)
	}
}

func TestSourcesAreJoinedWhicheverSpeaksFirst(t *testing.T) {
	scan := container.Container{ID: id64, Runtime: "docker", CgroupID: 7, CgroupPath: "/docker/" + id64}
	containerd := container.Container{ID: id64, Runtime: "docker", Namespace: "moby", CgroupID: 7, CgroupPath: "/docker/" + id64, PID: 70,
		Labels: map[string]string{"com.docker/engine.bundle.path": "/x"}}
	docker := container.Container{ID: id64, Runtime: "docker", Name: "web", Image: "nginx", Labels: map[string]string{"team": "blue"}}
	say := []func(b *bench){
		func(b *bench) { b.say("cgroup", container.Upsert, scan, inferred) },
		func(b *bench) { b.say("containerd", container.Upsert, containerd, partial) },
		func(b *bench) { b.say("docker", container.Upsert, docker) },
	}
	for _, order := range [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}, {2, 0, 2, 1, 1, 0}} {
		t.Run(fmt.Sprint(order), func(t *testing.T) {
			b := newBench(t, Config{})
			for _, i := range order {
				say[i](b)
			}
			rec := b.want(Profiled, 7)
			if rec.Name != "web" || rec.Image != "nginx" || rec.PID != 70 || rec.Namespace != "moby" || len(rec.Labels) != 2 || len(rec.Sources) != 3 {
				t.Errorf("record %+v", rec)
			}
			if b.k.next != 1 {
				t.Errorf("%d scopes were made, want 1", b.k.next)
			}
		})
	}
}

func TestARecordTellsWhoFoundItAndWhen(t *testing.T) {
	b := newBench(t, Config{})
	c := container.Container{ID: id64, CgroupID: 1}
	b.say("cgroup", container.Upsert, c, inferred)
	first := b.now
	b.say("docker", container.Upsert, c)
	second := b.now
	b.say("cgroup", container.Upsert, c, inferred)
	rec := b.one()
	if len(rec.FoundBy) != 2 || rec.FoundBy["cgroup"].After(first) || rec.FoundBy["docker"].After(second) || !rec.Sources["cgroup"].After(second) {
		t.Errorf("found by %v, last told by %v", rec.FoundBy, rec.Sources)
	}
	// The next run is found anew.
	b.say("cgroup", container.Gone, c, inferred)
	c.CgroupID = 2
	b.say("cgroup", container.Upsert, c, inferred)
	if rec := b.List()[1]; len(rec.FoundBy) != 1 || !rec.FoundBy["cgroup"].After(second) {
		t.Errorf("the second run was found by %v", rec.FoundBy)
	}
}

func TestARestartIsANewGeneration(t *testing.T) {
	b := newBench(t, Config{})
	b.say("docker", container.Upsert, container.Container{ID: id64, Name: "web", CgroupID: 1, PID: 10})
	first := b.one().ScopeID
	b.say("docker", container.Gone, container.Container{ID: id64, CgroupID: 1})
	b.say("containerd", container.Upsert, container.Container{ID: id64, CgroupID: 2, PID: 20}, partial) // knows no name
	l := b.List()
	if len(l) != 2 || l[0].State != Gone || l[1].State != Profiled {
		t.Fatalf("list %+v, want one gone and one profiled", l)
	}
	if l[1].Name != "web" || l[1].PID != 20 || l[1].ScopeID == first || l[1].StartedAt.After(time.Time{}) {
		t.Errorf("second run %+v, want the name of the first and its own scope", l[1])
	}
	if old, ok := b.Lookup(first); !ok || old.PID != 10 || old.State != Gone || old.CgroupID != 1 || !old.Profiled() {
		t.Errorf("first run by its scope: %+v, %t", old, ok)
	}
	b.wantScopes(2)

	// The same without the end of the first having been told.
	b.say("docker", container.Upsert, container.Container{ID: id64, CgroupID: 3, PID: 30})
	b.wantScopes(3)
	if s := b.Stats(); s.Restarts != 2 || s.Containers[Gone] != 2 || s.Containers[Profiled] != 1 {
		t.Errorf("stats %+v", s)
	}
}

func TestAGoneContainerIsKnownForTwoWholeWindows(t *testing.T) {
	b := newBench(t, Config{})
	b.say("x", container.Upsert, container.Container{ID: "a", CgroupID: 1})
	scope := b.one().ScopeID
	b.say("x", container.Gone, container.Container{ID: "a"})
	b.wantScopes()
	for range 2 {
		b.WindowEnd()
		if _, ok := b.Lookup(scope); !ok {
			t.Fatal("a container is forgotten though its samples may still come")
		}
	}
	b.WindowEnd()
	if _, ok := b.Lookup(scope); ok || len(b.List()) != 0 || b.Stats().Scopes != 0 {
		t.Error("a container is kept for ever")
	}
	if len(b.records)+len(b.byID)+len(b.byCgroup)+len(b.byScope) != 0 {
		t.Errorf("left over: %v %v %v %v", b.records, b.byID, b.byCgroup, b.byScope)
	}
}

func TestALateWordNamesAContainerThatIsGone(t *testing.T) {
	b := newBench(t, Config{})
	b.say("cgroup", container.Upsert, container.Container{ID: id64, CgroupID: 1}, inferred)
	scope := b.one().ScopeID
	b.say("cgroup", container.Gone, container.Container{ID: id64, CgroupID: 1}, inferred)
	b.say("docker", container.Upsert, container.Container{ID: id64, Name: "job"})
	b.say("containerd", container.Upsert, container.Container{ID: id64, CgroupID: 1, Image: "busybox"})
	rec, ok := b.Lookup(scope)
	if !ok || rec.Name != "job" || rec.Image != "busybox" || rec.State != Gone || !rec.Described {
		t.Errorf("%+v, %t", rec, ok)
	}
	b.want(Gone)
}

func TestProvisionalUntilDescribed(t *testing.T) {
	b := newBench(t, Config{Targets: []Rule{{Exclude: true, Name: "secret"}}})
	b.say("containerd", container.Upsert, container.Container{ID: id64, CgroupID: 1}, partial)
	scope := b.want(Provisional, 1).ScopeID
	b.say("docker", container.Upsert, container.Container{ID: id64, Name: "secret"})
	rec := b.want(Excluded)
	if rec.Reason != "rule 1 of targets excludes name: secret" || rec.Profiled() {
		t.Errorf("reason %q, profiled %t", rec.Reason, rec.Profiled())
	}
	if rec, ok := b.Lookup(scope); !ok || rec.Profiled() {
		t.Errorf("samples taken before the description would be kept: %+v, %t", rec, ok)
	}
	b.WindowEnd()
	b.WindowEnd()
	b.WindowEnd()
	if _, ok := b.Lookup(scope); ok {
		t.Error("the scope of the excluded container is known for ever")
	}
	b.want(Excluded)
}

// What is excluded is kept out of the scope that it may lie in, for as long as it is there.
func TestExcludedIsBarred(t *testing.T) {
	b := newBench(t, Config{Targets: []Rule{{Exclude: true, Name: "secret"}}})
	barred := func(want bool) {
		t.Helper()
		if got := b.k.barred[1]; got != want || b.k.id(1) != 0 && got {
			t.Errorf("barred %t, scope %d; want barred %t", got, b.k.id(1), want)
		}
	}
	b.say("containerd", container.Upsert, container.Container{ID: id64, CgroupID: 1}, partial)
	barred(false)
	b.k.refuses = errors.New("the map is full")
	b.say("docker", container.Upsert, container.Container{ID: id64, Name: "secret"})
	barred(false)
	if b.k.id(1) != 0 || b.want(Excluded).Reason == "" {
		t.Error("excluded, and still in scope when the kernel cannot bar it")
	}
	b.k.refuses = nil
	b.WindowEnd()
	barred(true)
	b.say("docker", container.Upsert, container.Container{ID: id64, Name: "public"})
	barred(false)
	b.want(Profiled, 1)
	b.say("docker", container.Upsert, container.Container{ID: id64, Name: "secret"})
	barred(true)
	b.say("containerd", container.Gone, container.Container{ID: id64, CgroupID: 1})
	barred(false)
}

func TestNobodyDescribesIt(t *testing.T) {
	b := newBench(t, Config{})
	b.say("cgroup", container.Upsert, container.Container{ID: id64, Runtime: "cri-o", CgroupID: 1}, inferred)
	b.WindowEnd()
	if rec := b.want(Provisional, 1); rec.Described {
		t.Error("described after one window")
	}
	b.WindowEnd()
	if rec := b.want(Profiled, 1); !rec.Described || b.Stats().Undescribed != 1 {
		t.Errorf("record %+v, stats %+v", rec, b.Stats())
	}
	// Somebody does after all.
	b.say("nri", container.Upsert, container.Container{ID: id64, Name: "web", CgroupID: 1})
	if rec := b.want(Profiled, 1); rec.Name != "web" || b.k.next != 1 {
		t.Errorf("record %+v after %d scopes", rec, b.k.next)
	}
}

func TestAtTheEndRulesJudgeWhatNobodyHasDescribed(t *testing.T) {
	b := newBench(t, Config{Targets: []Rule{{Name: "web"}, {Exclude: true}}})
	b.say("cgroup", container.Upsert, container.Container{ID: "web", CgroupID: 1}, inferred)
	b.say("cgroup", container.Upsert, container.Container{ID: "else", CgroupID: 2}, inferred)
	b.say("docker", container.Upsert, container.Container{ID: "waits"}, partial)
	b.wantScopes(1, 2)
	scope := b.k.id(2)
	b.Settle()
	b.wantScopes(1)
	if rec, ok := b.Lookup(scope); !ok || rec.Profiled() || rec.Reason != "rule 2 of targets excludes everything" {
		t.Errorf("record %+v, %t", rec, ok)
	}
	if rec, ok := b.Lookup(b.k.id(1)); !ok || !rec.Profiled() || !rec.Described || b.Stats().Undescribed != 2 {
		t.Errorf("record %+v, %t, stats %+v", rec, ok, b.Stats())
	}
}

func TestWhatWasInferredDoesNotOutrankWhatWasTold(t *testing.T) {
	b := newBench(t, Config{})
	b.say("containerd", container.Upsert, container.Container{ID: id64, Name: "web", Runtime: "docker", CgroupID: 1})
	// Somebody makes a cgroup with the name of the container.
	b.say("cgroup", container.Upsert, container.Container{ID: id64, Runtime: "podman", CgroupID: 2}, inferred)
	b.want(Profiled, 1)
	// The real one, under a name that says something else.
	b.say("cgroup", container.Upsert, container.Container{ID: "default", Runtime: "lxc", CgroupID: 1}, inferred)
	if rec := b.want(Profiled, 1); rec.Runtime != "docker" || rec.ID != id64 {
		t.Errorf("record %+v", rec)
	}
	if s := b.Stats(); s.Conflicts != 1 {
		t.Errorf("stats %+v", s)
	}
	// That the cgroup no longer exists is the kernel's word.
	b.say("cgroup", container.Gone, container.Container{ID: id64, CgroupID: 1}, inferred)
	b.want(Gone)
}

func TestPauseContainersAreNotListed(t *testing.T) {
	b := newBench(t, Config{})
	b.say("cgroup", container.Upsert, container.Container{ID: id64, CgroupID: 1}, inferred)
	b.wantScopes(1)
	b.say("containerd", container.Upsert, container.Container{ID: id64, CgroupID: 1, Sandbox: true})
	b.wantScopes()
	if l := b.List(); len(l) != 0 {
		t.Errorf("list %+v", l)
	}
	// A container whose process is called pause is one, if its runtime says so.
	b.say("cgroup", container.Upsert, container.Container{ID: "x", CgroupID: 2, Sandbox: true}, func(e *container.Event) { e.Inferred = true })
	b.wantScopes()
	b.say("containerd", container.Upsert, container.Container{ID: "x", CgroupID: 2})
	b.want(Profiled, 2)
}

func TestSyncedEndsWhatASourceNoLongerTells(t *testing.T) {
	b := newBench(t, Config{})
	list := func(ids ...string) {
		b.say("containerd", container.Syncing, container.Container{}, partial)
		for i, id := range ids {
			b.say("containerd", container.Upsert, container.Container{ID: id, CgroupID: uint64(id[0]), PID: i + 1})
		}
		b.say("containerd", container.Synced, container.Container{}, partial)
	}
	list("a", "b", "c")
	b.say("cgroup", container.Syncing, container.Container{}, inferred)
	b.say("cgroup", container.Upsert, container.Container{ID: "c", CgroupID: 'c'}, inferred)
	b.say("cgroup", container.Synced, container.Container{}, inferred)
	b.wantScopes('a', 'b', 'c')
	b.say("containerd", container.Upsert, container.Container{ID: "d", CgroupID: 'd'}) // between two lists
	list("b")
	b.wantScopes('b', 'c') // the scan still sees c
	b.say("cgroup", container.Syncing, container.Container{}, inferred)
	b.say("cgroup", container.Synced, container.Container{}, inferred)
	b.wantScopes('b')
	if s := b.Stats(); s.Missed != 3 {
		t.Errorf("stats %+v, want 3 missed", s)
	}
	// A Synced without Syncing ends nothing.
	b.say("containerd", container.Synced, container.Container{}, partial)
	b.wantScopes('b')
}

func TestEndsOfEarlierRunsAreStale(t *testing.T) {
	b := newBench(t, Config{})
	b.say("containerd", container.Upsert, container.Container{ID: "a", CgroupID: 1, PID: 10})
	died := b.now
	b.say("containerd", container.Upsert, container.Container{ID: "a", CgroupID: 2, PID: 20, TaskCreatedAt: b.now.Add(time.Microsecond)})
	b.say("docker", container.Gone, container.Container{ID: "a", PID: 10}) // another pid
	b.say("docker", container.Gone, container.Container{ID: "a"}, func(e *container.Event) { e.At = died })
	b.say("docker", container.Gone, container.Container{ID: "a", CgroupID: 1})
	b.wantScopes(2)
	b.say("docker", container.Upsert, container.Container{ID: "a", CgroupID: 9, StartedAt: died.Add(-time.Minute)}) // told late
	b.wantScopes(2)
	if s := b.Stats(); s.Stale != 3 {
		t.Errorf("stats %+v, want 3 stale", s)
	}
	b.say("docker", container.Gone, container.Container{ID: "a", PID: 20})
	b.wantScopes()
	b.say("docker", container.Gone, container.Container{ID: "unknown"})
	if s := b.Stats(); s.Orphans != 1 {
		t.Errorf("stats %+v, want an orphan", s)
	}
}

func TestTheSameIDInTwoNamespaces(t *testing.T) {
	b := newBench(t, Config{})
	b.say("containerd", container.Upsert, container.Container{ID: "web", Runtime: "containerd", Namespace: "one", CgroupID: 1})
	b.say("containerd", container.Upsert, container.Container{ID: "web", Runtime: "containerd", Namespace: "two", CgroupID: 2})
	b.wantScopes(1, 2)
	b.say("hook", container.Gone, container.Container{ID: "web"}) // which?
	b.wantScopes(1, 2)
	b.say("containerd", container.Gone, container.Container{ID: "web", Runtime: "containerd", Namespace: "one"})
	b.wantScopes(2)
	if s := b.Stats(); s.Ambiguous != 1 {
		t.Errorf("stats %+v", s)
	}
}

func TestTwoContainersInOneCgroup(t *testing.T) {
	b := newBench(t, Config{})
	b.say("containerd", container.Upsert, container.Container{ID: "a", CgroupID: 1, CgroupPath: "/x"})
	b.say("containerd", container.Upsert, container.Container{ID: "b", CgroupID: 1, CgroupPath: "/x"})
	b.say("containerd", container.Upsert, container.Container{ID: "b", CgroupID: 1, CgroupPath: "/x"})
	l := b.List()
	if len(l) != 2 || l[0].State != Profiled || l[1].State != Excluded || !strings.Contains(l[1].Reason, "same cgroup as a") {
		t.Fatalf("list %+v", l)
	}
	b.say("containerd", container.Gone, container.Container{ID: "a", CgroupID: 1})
	l = b.List()
	if l[0].State != Gone || l[1].State != Profiled {
		t.Errorf("list %+v, want b to have the cgroup now", l)
	}
	b.wantScopes(1)
	b.say("containerd", container.Gone, container.Container{ID: "b", CgroupID: 1})
	b.wantScopes()
}

func TestTheRootCgroupIsNoContainer(t *testing.T) {
	b := newBench(t, Config{})
	b.say("containerd", container.Upsert, container.Container{ID: "a", CgroupID: 1, CgroupPath: "/"})
	if rec := b.want(Excluded); !strings.Contains(rec.Reason, "root cgroup") || rec.CgroupPath != "/" {
		t.Errorf("record %+v", rec)
	}
	b.say("containerd", container.Upsert, container.Container{ID: "b", CgroupID: 1, CgroupPath: "/"})
	b.wantScopes()
	if l := b.List(); len(l) != 2 || !strings.Contains(l[1].Reason, "root cgroup") {
		t.Errorf("list %+v", l)
	}
}

func TestWaitingWithoutACgroup(t *testing.T) {
	b := newBench(t, Config{})
	b.say("docker", container.Upsert, container.Container{ID: id64, Name: "web"})
	if rec := b.want(Waiting); rec.Reason != "it has no process yet" || rec.Profiled() {
		t.Errorf("record %+v", rec)
	}
	b.say("docker", container.Upsert, container.Container{ID: id64, PID: 12})
	if rec := b.want(Waiting); !strings.Contains(rec.Reason, "process 12") {
		t.Errorf("reason %q", rec.Reason)
	}
	b.say("docker", container.Gone, container.Container{ID: id64})
	b.want(Gone)
	b.say("docker", container.Upsert, container.Container{})
	if b.Stats().Nameless != 1 {
		t.Errorf("stats %+v", b.Stats())
	}
}

func TestARefusalOfTheKernelIsTriedAgain(t *testing.T) {
	b := newBench(t, Config{})
	b.k.refuses = errors.New("the map is full; exclude some by targets")
	b.say("x", container.Upsert, container.Container{ID: "a", CgroupID: 1})
	if rec := b.want(Failed); rec.Reason != "the map is full; exclude some by targets" {
		t.Errorf("reason %q", rec.Reason)
	}
	b.WindowEnd()
	b.k.refuses = nil
	b.WindowEnd()
	b.want(Profiled, 1)
	if s := b.Stats(); s.ScopeErrors != 2 {
		t.Errorf("stats %+v, want 2 refusals", s)
	}
}

func TestTargets(t *testing.T) {
	c := container.Container{ID: "0123", Name: "api", Image: "docker.io/library/pause:3.9", Runtime: "docker", Namespace: "moby", CgroupID: 1,
		KubernetesContainer: "main", Labels: map[string]string{"team": "payments", "empty": ""},
		Pod: container.Pod{Name: "api-0", Namespace: "shop", Labels: map[string]string{"app": "api"}}}
	for _, tc := range []struct {
		name   string
		rules  []Rule
		want   State
		reason string
	}{
		{"none", nil, Profiled, ""},
		{"excluded by image across slashes", []Rule{{Exclude: true, Image: "*/pause:*"}}, Excluded, "rule 1 of targets excludes image: */pause:*"},
		{"exclusion of others", []Rule{{Exclude: true, Image: "nginx"}}, Profiled, ""},
		{"named", []Rule{{Runtime: "docker", Label: map[string]string{"team": "pay*"}}}, Profiled, ""},
		{"others are named", []Rule{{Runtime: "podman"}}, Excluded, "no rule of targets names it"},
		{"first rule wins", []Rule{{Name: "api"}, {Exclude: true}}, Profiled, ""},
		{"first rule wins, excluding", []Rule{{Exclude: true, Name: "a?i"}, {Name: "api"}}, Excluded, "rule 1 of targets excludes name: a?i"},
		{"by id", []Rule{{Exclude: true, Name: "01*"}}, Excluded, "rule 1 of targets excludes name: 01*"},
		{"by name in the pod", []Rule{{Exclude: true, Name: "[lm]ain"}}, Excluded, "rule 1 of targets excludes name: [lm]ain"},
		{"namespace is the pod's", []Rule{{Exclude: true, Namespace: "moby"}, {Exclude: true, Namespace: "shop", Pod: "api-*"}}, Excluded,
			"rule 2 of targets excludes namespace: shop, pod: api-*"},
		{"pod label", []Rule{{Exclude: true, Label: map[string]string{"app": "*"}}}, Excluded, "rule 1 of targets excludes label app: *"},
		{"a label that is not there", []Rule{{Exclude: true, Label: map[string]string{"nothing": "*"}}}, Profiled, ""},
		{"a label that is empty", []Rule{{Exclude: true, Label: map[string]string{"empty": ""}}}, Excluded, "rule 1 of targets excludes label empty: "},
		{"all must match", []Rule{{Exclude: true, Runtime: "docker", Name: "web"}}, Profiled, ""},
		{"everything", []Rule{{Exclude: true}}, Excluded, "rule 1 of targets excludes everything"},
		{"malformed", []Rule{{Exclude: true, Name: "["}}, Profiled, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBench(t, Config{Targets: tc.rules})
			b.say("x", container.Upsert, c)
			if rec := b.one(); rec.State != tc.want || rec.Reason != tc.reason {
				t.Errorf("got %v, %q, want %v, %q", rec.State, rec.Reason, tc.want, tc.reason)
			}
		})
	}
	err := CheckRules([]Rule{{Name: "ok*"}, {Image: "[", Label: map[string]string{"a": "[b"}}})
	if err == nil || !strings.Contains(err.Error(), "targets[1].image") || !strings.Contains(err.Error(), "targets[1].label a") {
		t.Errorf("CheckRules: %v", err)
	}
	if err := CheckRules([]Rule{{Name: "[a-z]*", Image: "a/*"}}); err != nil {
		t.Errorf("CheckRules: %v", err)
	}
}

func TestOwnLabels(t *testing.T) {
	for _, tc := range []struct {
		name     string
		labels   map[string]string
		policy   LabelPolicy
		state    State
		asked    int
		given    int
		service  string
		tenant   string
		thinning uint32
		notes    []string
	}{
		{name: "none", policy: allowAll, state: Profiled, given: 97, thinning: 1},
		{name: "disabled", labels: map[string]string{LabelEnable: "false"}, policy: allowAll, state: Excluded},
		{name: "disabled, not allowed", labels: map[string]string{LabelEnable: "false"}, state: Profiled, given: 97, thinning: 1,
			notes: []string{`stoker.enable="false" is not allowed by container_labels`}},
		{name: "enabled", labels: map[string]string{LabelEnable: "true"}, policy: allowAll, state: Profiled, given: 97, thinning: 1},
		{name: "nonsense", labels: map[string]string{LabelEnable: "nö"}, policy: allowAll, state: Profiled, given: 97, thinning: 1,
			notes: []string{`stoker.enable="nö" is neither true nor false`}},
		{name: "slower", labels: map[string]string{LabelFrequency: "19"}, policy: allowAll, state: Profiled, asked: 19, given: 19, thinning: 5},
		{name: "much slower", labels: map[string]string{LabelFrequency: "1"}, policy: allowAll, state: Profiled, asked: 1, given: 1, thinning: 97},
		{name: "faster than the event", labels: map[string]string{LabelFrequency: "999"}, policy: allowAll, state: Profiled, asked: 999, given: 97, thinning: 1},
		{name: "more than allowed", labels: map[string]string{LabelFrequency: "90"}, policy: LabelPolicy{Allow: []string{"frequency"}, MaxFrequency: 20},
			state: Profiled, asked: 90, given: 19, thinning: 5},
		{name: "frequency not allowed", labels: map[string]string{LabelFrequency: "19"}, state: Profiled, asked: 19, given: 97, thinning: 1,
			notes: []string{`stoker.frequency="19" is not allowed by container_labels`}},
		{name: "no number", labels: map[string]string{LabelFrequency: "-5"}, policy: allowAll, state: Profiled, given: 97, thinning: 1,
			notes: []string{`stoker.frequency="-5" is not a whole number of samples per second`}},
		{name: "service and tenant", labels: map[string]string{LabelService: "shop", LabelTenant: "blue"}, policy: allowAll, state: Profiled, given: 97, thinning: 1,
			service: "shop", tenant: "blue"},
		{name: "another tenant", labels: map[string]string{LabelTenant: "red"}, policy: allowAll, state: Profiled, given: 97, thinning: 1,
			notes: []string{`stoker.tenant="red" is not among the tenants of container_labels`}},
		{name: "service not allowed", labels: map[string]string{LabelService: "shop"}, state: Profiled, given: 97, thinning: 1,
			notes: []string{`stoker.service="shop" is not allowed by container_labels`}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBench(t, Config{ContainerLabels: tc.policy})
			b.say("x", container.Upsert, container.Container{ID: "a", CgroupID: 1, Labels: tc.labels})
			rec := b.one()
			if rec.State != tc.state || rec.AskedFrequency != tc.asked || rec.GivenFrequency != tc.given || rec.Service != tc.service ||
				rec.Tenant != tc.tenant || rec.Thinning != tc.thinning || !slices.Equal(rec.Notes, tc.notes) {
				t.Errorf("got %v, asked %d, given %d, service %q, tenant %q, thinning %d, notes %q", rec.State, rec.AskedFrequency, rec.GivenFrequency,
					rec.Service, rec.Tenant, rec.Thinning, rec.Notes)
			}
			if tc.state == Profiled && b.k.thin[b.k.id(1)] != tc.thinning {
				t.Errorf("the kernel thins by %d, want %d", b.k.thin[b.k.id(1)], tc.thinning)
			}
		})
	}
	b := newBench(t, Config{ContainerLabels: allowAll})
	b.say("x", container.Upsert, container.Container{ID: "a", CgroupID: 1, Pod: container.Pod{Annotations: map[string]string{LabelEnable: "false"}}})
	if rec := b.one(); rec.State != Excluded || !strings.Contains(rec.Reason, LabelEnable) {
		t.Errorf("a pod's annotation: %v, %q", rec.State, rec.Reason)
	}
}

func TestAChangeOfThinningIsANewScope(t *testing.T) {
	b := newBench(t, Config{ContainerLabels: allowAll})
	b.say("x", container.Upsert, container.Container{ID: "a", CgroupID: 1, Labels: map[string]string{LabelFrequency: "19"}})
	first := b.one().ScopeID
	b.SetTargets(nil, LabelPolicy{})
	second := b.want(Profiled, 1).ScopeID
	if first == second || b.k.thin[first] != 5 || b.k.thin[second] != 1 {
		t.Errorf("scopes %d and %d are thinned by %d and %d", first, second, b.k.thin[first], b.k.thin[second])
	}
	old, ok := b.Lookup(first)
	if !ok || old.Thinning != 5 || old.GivenFrequency != 19 || !old.Profiled() || old.ScopeID != first {
		t.Errorf("the old scope: %+v, %t", old, ok)
	}
	b.SetTargets([]Rule{{Exclude: true}}, LabelPolicy{})
	b.want(Excluded)
	b.SetTargets(nil, LabelPolicy{})
	third := b.want(Profiled, 1).ScopeID
	if third == second {
		t.Error("a scope id was used again")
	}
	for range 3 {
		b.WindowEnd()
	}
	if _, ok := b.Lookup(first); ok {
		t.Error("the old scope is known for ever")
	}
	if rec, ok := b.Lookup(third); !ok || rec.State != Profiled {
		t.Error("the scope in use is forgotten")
	}
}

func TestStartsAreCountedByWhetherTheyWereInScope(t *testing.T) {
	b := newBench(t, Config{})
	created := b.now
	b.say("x", container.Upsert, container.Container{ID: "a", CgroupID: 1, TaskCreatedAt: created})
	b.say("x", container.Upsert, container.Container{ID: "a", CgroupID: 1, StartedAt: b.now.Add(time.Second)})
	b.say("x", container.Upsert, container.Container{ID: "b", TaskCreatedAt: created, StartedAt: b.now.Add(time.Millisecond)})
	b.say("x", container.Upsert, container.Container{ID: "b", CgroupID: 2})
	b.say("x", container.Upsert, container.Container{ID: "c", CgroupID: 3, StartedAt: b.now}) // found running
	s := b.Stats()
	n := uint64(0)
	for _, c := range s.ScopeDelay.Counts {
		n += c
	}
	if s.Early != 1 || s.Late != 1 || n != 2 || s.ScopeDelay.Sum <= 0 {
		t.Errorf("stats %+v, want one early, one late, two delays", s)
	}
	names := map[string]bool{}
	for _, m := range s.Metrics() {
		names[m.Name] = true
		if len(m.Labels) != len(m.Values) || m.Help == "" || strings.HasSuffix(m.Name, "_total") != m.Counter {
			t.Errorf("metric %+v", m)
		}
	}
	for _, want := range []string{"stoker_source_events_total", "stoker_containers", "stoker_scopes", "stoker_registry_cases_total", "stoker_container_starts_total"} {
		if !names[want] {
			t.Errorf("metric %s is missing", want)
		}
	}
}

func TestWaitSynced(t *testing.T) {
	b := newBench(t, Config{})
	if b.WaitSynced(t.Context(), 1, time.Millisecond) {
		t.Error("synced without a source")
	}
	done := make(chan bool)
	go func() { done <- b.WaitSynced(t.Context(), 2, time.Minute) }()
	b.say("a", container.Synced, container.Container{})
	b.say("a", container.Synced, container.Container{})
	b.say("b", container.Synced, container.Container{})
	if !<-done {
		t.Error("not synced though two sources are")
	}
}

// life is a history of containers that start and end, and what two sources say about it, each in its own order.
type life struct {
	rnd     *rand.Rand
	at      time.Time
	running map[uint64]string // cgroup → container id
	since   map[uint64]time.Time
	runs    map[uint64]bool
	said    map[string][]container.Event // by source

	knowsCgroups bool // else the second source is one like Docker's API, which knows ids only
	secondInfers bool // it is one like the cgroup scan
	forgetful    bool // events get lost; each source ends with a list of what runs
}

func newLife(rnd *rand.Rand, forgetful bool) *life {
	l := &life{rnd: rnd, at: epoch, running: map[uint64]string{}, since: map[uint64]time.Time{}, runs: map[uint64]bool{}, said: map[string][]container.Event{}, forgetful: forgetful}
	l.knowsCgroups = rnd.IntN(2) == 0
	l.secondInfers = l.knowsCgroups && rnd.IntN(2) == 0
	containers := 1 + rnd.IntN(3)
	for range 1 + rnd.IntN(7) {
		n := rnd.IntN(containers)
		id := fmt.Sprintf("%064x", n)
		if n == 2 {
			id = "free-name"
		}
		l.step(id)
		for _, source := range []string{"a", "b"} {
			if rnd.IntN(4) == 0 {
				l.list(source)
			}
		}
	}
	if forgetful {
		l.list("a")
		l.list("b")
	}
	return l
}

// step has a container start, or end.
func (l *life) step(id string) {
	l.at = l.at.Add(time.Second)
	cgroup, typ := uint64(0), container.Gone
	for cg, x := range l.running {
		if x == id {
			cgroup = cg
		}
	}
	if cgroup == 0 {
		cgroup, typ = uint64(len(l.runs)+1), container.Upsert
		l.running[cgroup], l.runs[cgroup], l.since[cgroup] = id, true, l.at
	} else {
		delete(l.running, cgroup)
	}
	for _, source := range []string{"a", "b"} {
		for range 1 + l.rnd.IntN(5)/4 { // now and then said twice
			if l.forgetful && l.rnd.IntN(3) == 0 {
				continue
			}
			l.say(source, typ, id, cgroup, typ == container.Upsert)
		}
	}
}

// list has a source tell all that runs.
func (l *life) list(source string) {
	l.at = l.at.Add(time.Second)
	l.say(source, container.Syncing, "", 0, false)
	for cg, id := range l.running {
		l.say(source, container.Upsert, id, cg, false) // a list does not say since when
	}
	l.say(source, container.Synced, "", 0, false)
}

func (l *life) say(source string, typ container.EventType, id string, cgroup uint64, witnessed bool) {
	e := container.Event{Type: typ, Source: source, At: l.at.Add(time.Duration(l.rnd.IntN(900)) * time.Millisecond)}
	if id != "" {
		e.Container = container.Container{ID: id, Runtime: "docker", CgroupID: cgroup}
	}
	if source == "a" && id != "" {
		e.Container.PID, e.Container.Namespace = int(cgroup)*10, "moby"
		if witnessed {
			e.Container.TaskCreatedAt = l.since[cgroup]
		}
	}
	if source == "b" {
		e.Inferred, e.Complete = l.secondInfers, typ == container.Upsert && !l.secondInfers
		if !l.knowsCgroups {
			e.Container.CgroupID = 0
		}
	}
	l.said[source] = append(l.said[source], e)
}

// Whatever the interleaving of two sources that each tell the truth in order, there is one record per run, and exactly the
// cgroups of the containers that run are in scope.
func TestAnyOrderOfTwoSourcesEndsTheSame(t *testing.T) {
	for seed := range uint64(6000) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		l := newLife(rnd, seed%2 == 1)
		a, b := l.said["a"], l.said["b"]
		bench := newBench(t, Config{})
		var order []string
		for len(a)+len(b) > 0 {
			from := &a
			if len(a) == 0 || len(b) > 0 && rnd.IntN(2) == 0 {
				from = &b
			}
			e := (*from)[0]
			*from = (*from)[1:]
			order = append(order, fmt.Sprintf("%s %v %s cgroup %d at %v", e.Source, e.Type, strings.TrimLeft(e.Container.ID, "0"), e.Container.CgroupID, e.At.Sub(epoch)))
			bench.Apply(e)
		}
		got := map[uint64]string{}
		seen := map[uint64]int{}
		for _, rec := range bench.List() {
			if rec.State == Profiled || rec.State == Provisional {
				got[rec.CgroupID] = rec.ID
			}
			if rec.CgroupID != 0 {
				seen[rec.CgroupID]++
			}
		}
		bad := len(got) != len(l.running) || len(bench.k.scopes) != len(l.running)
		for cg, id := range l.running {
			bad = bad || got[cg] != id || bench.k.id(cg) == 0
		}
		for cg, n := range seen {
			bad = bad || n != 1 || !l.runs[cg]
		}
		if bad {
			t.Fatalf("seed %d: %v run, the registry has %v, in scope %v, records per cgroup %v; second source knows cgroups %t, infers %t; after\n%s",
				seed, l.running, got, bench.k.scopes, seen, l.knowsCgroups, l.secondInfers, strings.Join(order, "\n"))
		}
	}
}

func TestManySourcesAtOnce(t *testing.T) {
	k := newKernel()
	r := New(Config{Scopes: k, Frequency: 97})
	const sources, containers, rounds = 4, 20, 30
	var wg sync.WaitGroup
	for s := range sources {
		wg.Go(func() {
			name := fmt.Sprintf("source-%d", s)
			for round := range rounds {
				for i := range containers {
					c := container.Container{ID: fmt.Sprintf("%064x", i), CgroupID: uint64(round*containers + i + 1)}
					r.Apply(container.Event{Type: container.Upsert, Source: name, Complete: s == 0, Container: c})
				}
				for i := range containers {
					if round < rounds-1 {
						r.Apply(container.Event{Type: container.Gone, Source: name, Container: container.Container{ID: fmt.Sprintf("%064x", i), CgroupID: uint64(round*containers + i + 1)}})
					}
				}
			}
		})
	}
	stop := make(chan struct{})
	var readers sync.WaitGroup
	readers.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			for _, rec := range r.List() {
				if got, ok := r.Lookup(rec.ScopeID); ok && rec.ScopeID != 0 && got.ID != rec.ID {
					t.Errorf("scope %d is %s and %s", rec.ScopeID, rec.ID, got.ID)
				}
			}
			r.Stats()
			r.SetTargets(nil, LabelPolicy{})
		}
	})
	wg.Wait()
	close(stop)
	readers.Wait()
	// The sources were rounds apart, so who was last is open; that the table agrees with the kernel is not.
	live := map[uint64]bool{}
	for _, rec := range r.List() {
		if rec.State != Gone {
			live[rec.CgroupID] = true
			if k.id(rec.CgroupID) != rec.ScopeID {
				t.Errorf("container %s has scope %d, the kernel says %d", rec.ID, rec.ScopeID, k.id(rec.CgroupID))
			}
		}
	}
	if len(live) != len(k.scopes) {
		t.Errorf("%d containers live, %d cgroups are in scope", len(live), len(k.scopes))
	}
}

func BenchmarkApply(b *testing.B) {
	k := newKernel()
	r := New(Config{Scopes: k, Frequency: 97, ContainerLabels: allowAll, Targets: []Rule{{Exclude: true, Image: "*/pause:*"}}})
	labels := map[string]string{"a": "b", "stoker.service": "x"}
	for i := range 1000 {
		r.Apply(container.Event{Type: container.Upsert, Source: "s", Complete: true, Container: container.Container{ID: fmt.Sprint(i), CgroupID: uint64(i + 1), Labels: labels}})
	}
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		id, cg := fmt.Sprint("new", n), uint64(n+10000)
		r.Apply(container.Event{Type: container.Upsert, Source: "s", Complete: true, Container: container.Container{ID: id, CgroupID: cg, Labels: labels}})
		r.Apply(container.Event{Type: container.Gone, Source: "s", Container: container.Container{ID: id, CgroupID: cg}})
		if n%100 == 0 {
			r.WindowEnd()
		}
	}
}
