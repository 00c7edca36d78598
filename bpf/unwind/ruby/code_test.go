package ruby

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/bpf/process"
	"github.com/stoker-profiler/stoker/bpf/unwind/ruby/offsets"
)

// indexOf makes an index of lines as iseq.c of CRuby 3.1 does: positions are the instructions at which entries begin, ascending.
func indexOf(positions []int, n int) []byte {
	index := make([]byte, indexBytes(n))
	rank := func(to int) (r uint64) {
		for _, p := range positions {
			if p <= to {
				r++
			}
		}
		return r
	}
	le := binary.LittleEndian
	for i := range min(n, immediate) {
		at := index[i/perWord*8:]
		le.PutUint64(at, le.Uint64(at)|rank(i)<<(7*(i%perWord)))
	}
	for at, from := immediateBytes, immediate; at < len(index); at, from = at+blockBytes, from+blockSpan {
		block := index[at:]
		le.PutUint32(block, uint32(rank(from-1)))
		for j := 1; j < 8; j++ {
			le.PutUint64(block[8:], le.Uint64(block[8:])|(rank(from+64*j-1)-rank(from-1))<<(9*(j-1)))
		}
		for _, p := range positions {
			if p >= from && p < from+blockSpan {
				word := block[16+(p-from)/64*8:]
				le.PutUint64(word, le.Uint64(word)|1<<((p-from)%64))
			}
		}
	}
	return index
}

// Each instruction belongs to the last entry that begins at or before it.
func TestEntriesOfLinesAreFound(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{1, 8, 53, 54, 55, 566, 567, 2000} {
		positions := []int{0}
		for p := 1; p < n && len(positions) < 120; p++ {
			if random.IntN(5) == 0 {
				positions = append(positions, p)
			}
		}
		index := indexOf(positions, n)
		want := 0
		for p := range n {
			for want+1 < len(positions) && positions[want+1] <= p {
				want++
			}
			if got, err := entryOf(index, p); err != nil || got != want {
				t.Fatalf("instruction %d of %d: entry %d, %v; want %d", p, n, got, err, want)
			}
		}
		if _, err := entryOf(index, n+blockSpan); err == nil {
			t.Errorf("instruction %d of %d has an entry", n+blockSpan, n)
		}
	}
}

func TestMethodsAreQualified(t *testing.T) {
	for _, c := range []struct {
		label, class string
		singleton    bool
		want         string
	}{
		{"each", "List", false, "List#each"},
		{"make", "A::List", true, "A::List.make"},
		{"block in each", "List", false, "block in List#each"},
		{"rescue in block (2 levels) in each", "List", true, "rescue in block (2 levels) in List.each"},
		{"<main>", "Object", false, "<main>"},
		{"block in <class:List>", "List", false, "block in <class:List>"},
		{"each", "", false, "each"},
		{"", "List", false, ""},
	} {
		if got := qualify(c.label, c.class, c.singleton); got != c.want {
			t.Errorf("qualify(%q, %q, %v) = %q, want %q", c.label, c.class, c.singleton, got, c.want)
		}
	}
}

// waiting is a program that waits in a known stack, after it has said that it is there.
const waiting = `module Outer
  class Inner
    def deep
      [1].each do |_|
        Inner.stop
      end
    end

    def self.stop
      $stdout.puts("here")
      $stdout.flush
      $stdin.read
    end
  end
end

Outer::Inner.new.deep
`

// The frames of a live interpreter, read as the kernel side reads them.
func TestFramesOfALiveInterpreterAreRead(t *testing.T) {
	program := filepath.Join(t.TempDir(), "waiting.rb")
	if err := os.WriteFile(program, []byte(waiting), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("ruby", "--disable-gems", program)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v; run: packaging/setup.sh test", err)
	}
	defer func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}()
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "here\n" {
		t.Fatalf("the program said %q, %v", line, err)
	}
	im, bias := liveImage(t, cmd.Process.Pid)
	m := memory{process.Memory{PID: uint32(cmd.Process.Pid)}, im.table}
	s, err := findSymbols(m, uint64(im.data.Address)+bias, int(im.data.Size))
	if err != nil {
		t.Fatal(err)
	}
	object, err := m.u64(uint64(im.object) + bias)
	if err != nil {
		t.Fatal(err)
	}
	if name, singleton, err := s.class(object); name != "Object" || singleton || err != nil {
		t.Errorf("rb_cObject is %q, %v, %v", name, singleton, err)
	}
	want := fmt.Sprintf("IO#read\nOuter::Inner.stop %[1]s:12\nblock in Outer::Inner#deep %[1]s:5\nArray#each\nOuter::Inner#deep %[1]s:4\n<main> %[1]s:17", program)
	// It says that it is there shortly before it is.
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		frames, err := framesOf(im, s, bias)
		got := strings.Join(frames, "\n")
		if err == nil && got == want {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("frames are\n%s\n%v; want\n%s", got, err, want)
		}
	}
}

// framesOf walks the main ractor's context as ruby.bpf.c does.
func framesOf(im *image, s *symbols, bias uint64) (frames []string, err error) {
	o := im.table
	u64 := func(at uint64) uint64 {
		v, e := s.u64(at)
		err = cmp.Or(err, e)
		return v
	}
	context := u64(u64(uint64(im.ractor)+bias) + uint64(o.RunningContext))
	end := u64(context+uint64(o.VMStack)) + 8*u64(context+uint64(o.VMStackSize))
	for at := u64(context + uint64(o.ControlFrame)); at < end && err == nil; at += uint64(o.FrameSize) {
		ep := u64(at + uint64(o.EP))
		const magicMask, cfunc, dummy, local = 0x7fff0001, 0x55550001, 0x79990001, 2
		magic := u64(ep) & magicMask
		if magic == dummy {
			break
		}
		var method uint64
		for e := ep; err == nil; e = u64(e-8) &^ 3 {
			me := u64(e - 16)
			const svar = 2
			if me != 0 && isImemo(u64(me), svar) {
				me = u64(me + 8)
			}
			if me != 0 && isImemo(u64(me), imemoMethod) {
				method = me
				break
			}
			if u64(e)&local != 0 {
				break
			}
		}
		if magic == cfunc {
			c, e := s.native(method)
			err = cmp.Or(err, e)
			frames = append(frames, c.name)
			continue
		}
		iseq := u64(at + uint64(o.Iseq))
		c, e := s.sequence(iseq, method)
		err = cmp.Or(err, e)
		encoded := u64(u64(iseq+uint64(o.Body)) + uint64(o.Encoded))
		frames = append(frames, fmt.Sprintf("%s %s:%d", c.name, c.file, c.line(int((u64(at+uint64(o.PC))-encoded)/8))))
	}
	return frames, err
}

// liveImage returns the interpreter that a process has mapped, and where.
func liveImage(t *testing.T, pid int) (*image, uint64) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var start, end, offset uint64
		var perm, dev, path string
		var inode uint64
		if n, _ := fmt.Sscanf(line, "%x-%x %s %x %s %d %s", &start, &end, &perm, &offset, &dev, &inode, &path); n < 7 || perm[2] != 'x' || path[0] != '/' {
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		im, err := readImage(f, st.Size())
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if im == nil {
			continue
		}
		if im.table == nil {
			t.Fatalf("%s, of Ruby %s, is not supported", path, im.release)
		}
		if bias, ok := im.biasOf(&process.Mapping{Start: start, End: end, Offset: offset}); ok {
			return im, bias
		}
	}
	t.Fatal("the process has no interpreter")
	return nil, 0
}

// What is no interpreter is none, and no error.
func TestOtherProgramsAreNoInterpreters(t *testing.T) {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if im, err := readImage(f, st.Size()); im != nil || err != nil {
		t.Errorf("this test is an interpreter: %+v, %v", im, err)
	}
}

// made is memory at an address, with nothing around it.
type made struct {
	base uint64
	b    []byte
}

func (m made) ReadAt(b []byte, at int64) (int, error) {
	if uint64(at) < m.base || uint64(at)-m.base >= uint64(len(m.b)) {
		return 0, io.EOF
	}
	n := copy(b, m.b[uint64(at)-m.base:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

const madeBase = 0x10000

// Whatever a process's memory has: what is read ends, and has a limit.
func FuzzObjects(f *testing.F) {
	f.Add(make([]byte, 256), uint16(0), uint16(64))
	loop := make([]byte, 256) // objects whose pointers lead to themselves
	for i := 0; i+8 <= len(loop); i += 8 {
		binary.LittleEndian.PutUint64(loop[i:], madeBase|typeImemo)
	}
	for _, typ := range []uint64{typeClass | flagSingleton, typeIncluded, typeString | flagNoEmbed, typeArray, typeImemo | imemoIseq<<imemoShift, typeImemo | imemoMethod<<imemoShift} {
		b := append([]byte(nil), loop...)
		binary.LittleEndian.PutUint64(b, typ)
		f.Add(b, uint16(0), uint16(8))
	}
	table := offsets.Tables["3.1"]
	f.Fuzz(func(t *testing.T, b []byte, one, other uint16) {
		s := &symbols{memory: memory{made{madeBase, b}, &table}, ids: madeBase + uint64(other)}
		at := madeBase + uint64(one)
		if name, _ := s.text(at, maxNameBytes); len(name) > 3*maxNameBytes {
			t.Errorf("a name of %d bytes", len(name))
		}
		_, _ = s.name(uint64(other) << idScopeShift)
		_, _, _ = s.class(at)
		_, _ = s.native(at)
		if c, err := s.sequence(at, madeBase+uint64(other)); err == nil {
			for _, i := range []int{-1, 0, 1, c.count, c.count + 1, 1<<20 - 1} {
				c.line(i)
			}
			if len(c.lines) > maxTableBytes || len(c.index) > maxTableBytes {
				t.Errorf("tables of %d and %d bytes", len(c.lines), len(c.index))
			}
		}
		_, _ = findSymbols(s.memory, madeBase, len(b))
		_, _ = s.cookieOf(at, madeBase+uint64(other))
	})
}

func FuzzEntryOf(f *testing.F) {
	f.Add(indexOf([]int{0, 3, 60, 600}, 700), 650)
	f.Fuzz(func(t *testing.T, index []byte, position int) {
		if e, err := entryOf(index, position); err == nil && e < 0 {
			t.Errorf("entry %d", e)
		}
	})
}

// A damaged file ends in an error or in an interpreter that has its loop somewhere.
func FuzzReadImage(f *testing.F) {
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[:4096])
	f.Add([]byte("\x7fELF\x02\x01\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		im, err := readImage(strings.NewReader(string(b)), int64(len(b)))
		if err == nil && im != nil && im.table != nil && im.loop.Size == 0 {
			t.Error("an interpreter without a loop")
		}
	})
}
