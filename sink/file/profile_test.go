package file

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/google/pprof/profile"
)

// hostile is a function's name as nobody writes it by accident.
const hostile = "evil</script><script>alert(1)</script><img src=x onerror=alert(2)>;\n\x1b[31m\"'&"

var profileStart = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

type profileBuilder struct {
	p         *profile.Profile
	mappings  map[string]*profile.Mapping
	locations map[string]*profile.Location
}

func newProfile() *profileBuilder {
	return &profileBuilder{
		p: &profile.Profile{
			SampleType: []*profile.ValueType{{Type: "cpu", Unit: "nanoseconds"}},
			PeriodType: &profile.ValueType{Type: "cpu", Unit: "nanoseconds"},
			Period:     10_000_000, TimeNanos: profileStart.UnixNano(), DurationNanos: 10e9,
		},
		mappings:  map[string]*profile.Mapping{},
		locations: map[string]*profile.Location{},
	}
}

// add adds a stack, root first; a frame is "name" or "module:name".
func (b *profileBuilder) add(value int64, stack ...[2]string) {
	s := &profile.Sample{Value: []int64{value}}
	for _, f := range stack {
		module, name := f[0], f[1]
		m, ok := b.mappings[module]
		if !ok {
			m = &profile.Mapping{ID: uint64(len(b.p.Mapping) + 1), File: module, HasFunctions: true}
			b.mappings[module] = m
			b.p.Mapping = append(b.p.Mapping, m)
		}
		l, ok := b.locations[module+"\x00"+name]
		if !ok {
			fn := &profile.Function{ID: uint64(len(b.p.Function) + 1), Name: name, SystemName: name, Filename: "src/x.c", StartLine: 7}
			b.p.Function = append(b.p.Function, fn)
			l = &profile.Location{ID: uint64(len(b.p.Location) + 1), Mapping: m, Line: []profile.Line{{Function: fn, Line: 9}}}
			b.p.Location = append(b.p.Location, l)
			b.locations[module+"\x00"+name] = l
		}
		s.Location = append([]*profile.Location{l}, s.Location...)
	}
	b.p.Sample = append(b.p.Sample, s)
}

const (
	app    = "/usr/bin/shop"
	libc   = "/usr/lib/libc.so.6"
	kernel = "[kernel.kallsyms]"
)

// small is the fixed profile of the golden files.
func small() *profile.Profile {
	b := newProfile()
	main, serve := [2]string{app, "main"}, [2]string{app, "shop::serve(Request const&)"}
	b.add(500_000_000, main, serve, [2]string{app, "shop::price(int)"})
	b.add(250_000_000, main, serve, [2]string{libc, "memcpy"})
	b.add(150_000_000, main, serve, [2]string{libc, "read"}, [2]string{kernel, "do_syscall_64"}, [2]string{kernel, "vfs_read"})
	b.add(90_000_000, main, [2]string{app, hostile})
	b.add(10_000_000, main, serve, serve, [2]string{app, "shop::price(int)"})
	return b.p
}

// large is a profile as a busy service has it, always the same.
func large() *profile.Profile {
	random := rand.New(rand.NewPCG(7, 8))
	b := newProfile()
	packages := []string{"net/http", "encoding/json", "runtime", "github.com/acme/shop/cart", "github.com/acme/shop/price", "database/sql", "crypto/tls", "bufio"}
	for range 1500 {
		stack := [][2]string{{app, "runtime.goexit"}, {app, "net/http.(*conn).serve"}, {app, "net/http.serverHandler.ServeHTTP"}}
		for d := range 4 + random.IntN(18) {
			p := packages[int(random.ExpFloat64()*2+float64(d)/4)%len(packages)]
			stack = append(stack, [2]string{app, fmt.Sprintf("%s.(*Type%d).method%d", p, int(random.ExpFloat64()*1.2), d)})
		}
		switch random.IntN(6) {
		case 0:
			stack = append(stack, [2]string{kernel, "entry_SYSCALL_64_after_hwframe"}, [2]string{kernel, "do_syscall_64"}, [2]string{kernel, fmt.Sprintf("sys_call%d", random.IntN(4))}, [2]string{kernel, "copy_user_generic"})
		case 1:
			stack = append(stack, [2]string{libc, "memmove"})
		}
		b.add(10_000_000*(1+int64(random.ExpFloat64()*4)), stack...)
	}
	return b.p
}
