package native

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/bpf/symbol"
)

// begin reads the symbols of a file.
func begin(l *loader, scope uint32, open opener) *load[*symbol.Object] {
	return start(l, scope, open, symbol.NewCache(1<<20).Load)
}

func TestAFileThatIsNeverReadStopsOnlyItsContainer(t *testing.T) {
	l := newLoader()
	l.patience = time.Millisecond
	release := make(chan struct{})
	hang := func() (*os.File, bool, error) {
		<-release
		return nil, false, errors.New("the file system answered at last")
	}
	exe := func() (*os.File, bool, error) {
		f, err := os.Open("/proc/self/exe")
		return f, false, err
	}
	first := begin(l, 1, hang)
	if l.wait(&first.pending) {
		t.Fatal("a read that hangs has ended")
	}
	if begin(l, 1, exe) != nil {
		t.Error("its container may start another read")
	}
	l.patience = time.Minute
	other := begin(l, 2, exe)
	if other == nil || !l.wait(&other.pending) || other.err != nil || other.found == nil {
		t.Fatalf("another container: %+v", other)
	}
	close(release)
	<-first.done
	if first.err == nil {
		t.Error("the late answer is lost")
	}
	if again := begin(l, 1, exe); again == nil || !l.wait(&again.pending) || again.err != nil {
		t.Errorf("afterwards: %+v", again)
	}
}

// Reads that end just before our patience does cost everybody's time all the same.
func TestSlowFilesHaveABudget(t *testing.T) {
	l := newLoader()
	l.patience = time.Hour
	slow := begin(l, 1, func() (*os.File, bool, error) { return nil, false, errors.New("slow, but never too slow") })
	if !l.wait(&slow.pending) {
		t.Fatal("an error that is there at once was not seen")
	}
	l.waited[1] += scopePatience * l.patience // as many of those as it takes
	release := make(chan struct{})
	hang := func() (*os.File, bool, error) {
		<-release
		return nil, false, errors.New("answered")
	}
	if spent := begin(l, 1, hang); l.wait(&spent.pending) {
		t.Error("a read that hangs has ended")
	}
	if other := begin(l, 2, func() (*os.File, bool, error) { return nil, false, errors.New("answered") }); !l.wait(&other.pending) {
		t.Error("another container pays for it")
	}
	close(release)
	<-l.slow[0].done
	l.windowEnd()
	if again := begin(l, 1, hang); again == nil || !l.wait(&again.pending) {
		t.Error("no patience in the next window")
	}
}
