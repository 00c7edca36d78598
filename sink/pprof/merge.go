package pprof

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/google/pprof/profile"
	"github.com/klauspost/compress/gzip"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/stoker-profiler/stoker/sink"
)

// Bounds on what Parse takes in: a stored row or a file may have been written by anybody. What stoker writes stays under
// MaxBytes and MaxSamples, far below.
const (
	maxParsedBytes   = 16 << 20
	maxParsedEntries = 1 << 20 // samples, locations, functions, mappings and strings together
	// maxMerged bounds the distinct stacks of one merge: at a few hundred bytes each it keeps a query from taking the
	// memory of the node that it should explain.
	maxMerged = 1 << 20
)

// ErrTooLarge says that bytes describe more than a profile of ours can hold, or that a merge grew beyond its bound.
var ErrTooLarge = errors.New("profile too large")

// compressors are kept because each holds about a megabyte of tables, and windows come in bursts.
var compressors = sync.Pool{New: func() any { return gzip.NewWriter(io.Discard) }}

// Encode returns p as gzipped profile.proto. Equal profiles give equal bytes. p must not be in use elsewhere: encoding
// writes to its tables.
func Encode(p *profile.Profile) ([]byte, error) {
	gz, _, err := encode(p)
	return gz, err
}

// counter counts the bytes on their way to a compressor.
type counter struct {
	w io.Writer
	n int
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += n
	return n, err
}

func encode(p *profile.Profile) (gz []byte, size int, err error) {
	var out bytes.Buffer
	z := compressors.Get().(*gzip.Writer)
	defer func() {
		z.Reset(io.Discard) // do not pin out
		compressors.Put(z)
	}()
	z.Reset(&out)
	c := counter{w: z}
	if err := p.WriteUncompressed(&c); err != nil {
		return nil, 0, err
	}
	if err := z.Close(); err != nil {
		return nil, 0, err
	}
	return out.Bytes(), c.n, nil
}

// Parse decodes one profile.proto, gzipped or plain, and checks it. The bytes may be hostile: what would decompress to more
// than 16 MiB, or has more than a million entries, is refused with [ErrTooLarge].
func Parse(data []byte) (*profile.Profile, error) {
	if len(data) >= 2 && data[0] == 0x1f && data[1] == 0x8b {
		z, err := gzip.NewReader(bytes.NewReader(data))
		if err != nil {
			return nil, fmt.Errorf("read profile of %d bytes: not gzip: %w", len(data), err)
		}
		defer z.Close()
		if data, err = io.ReadAll(io.LimitReader(z, maxParsedBytes+1)); err != nil {
			return nil, fmt.Errorf("decompress profile at byte %d: %w", len(data), err)
		}
	}
	if len(data) > maxParsedBytes {
		return nil, fmt.Errorf("%w: more than %d bytes decompressed", ErrTooLarge, maxParsedBytes)
	}
	if err := scan(data); err != nil {
		return nil, err
	}
	p, err := profile.ParseUncompressed(data)
	if err != nil {
		return nil, fmt.Errorf("parse profile of %d bytes: %w", len(data), err)
	}
	if err := p.CheckValid(); err != nil {
		return nil, fmt.Errorf("malformed profile: %w", err)
	}
	return p, nil
}

// scan counts the entries of an encoded profile before the parser allocates a structure for each: two bytes can ask for
// two hundred.
func scan(data []byte) error {
	entries := 0
	for at := 0; at < len(data); {
		_, typ, n := protowire.ConsumeTag(data[at:])
		if n < 0 {
			return fmt.Errorf("malformed profile: bad tag at byte %d: %w", at, protowire.ParseError(n))
		}
		v := protowire.ConsumeFieldValue(1, typ, data[at+n:])
		if v < 0 {
			return fmt.Errorf("malformed profile: bad field at byte %d: %w", at, protowire.ParseError(v))
		}
		at += n + v
		if entries++; entries > maxParsedEntries {
			return fmt.Errorf("%w: more than %d entries in the first %d of %d bytes", ErrTooLarge, maxParsedEntries, at, len(data))
		}
	}
	return nil
}

// Merger adds profiles up, one at a time, so that a day of windows needs the memory of their distinct stacks only. All must
// have the sample and period types of the first. Sample labels are not kept.
type Merger struct {
	b *Builder
	n int
}

// Add decodes a stored profile (see [Parse]) and adds it. After an error the Merger is as it was before, except after
// [ErrTooLarge] for the sum, when it may hold a part of the profile.
func (m *Merger) Add(gz []byte) error {
	p, err := Parse(gz)
	if err != nil {
		return err
	}
	return m.AddProfile(p)
}

// AddProfile adds a profile that is valid (see [profile.Profile.CheckValid]). p is read only, and not kept.
func (m *Merger) AddProfile(p *profile.Profile) error {
	t := typeOf(p)
	start := time.Unix(0, p.TimeNanos).UTC()
	end := start.Add(time.Duration(p.DurationNanos))
	switch {
	case m.b == nil:
		m.b = NewBuilder(t, start, end, p.Period)
	case !slices.Equal(m.b.typ.Samples, t.Samples) || m.b.typ.Period != t.Period:
		return fmt.Errorf("merge profiles: one has types %v per %v, another %v per %v: select one profile type",
			m.b.typ.Samples, m.b.typ.Period, t.Samples, t.Period)
	default:
		if m.b.start.UnixNano() == 0 || p.TimeNanos != 0 && start.Before(m.b.start) {
			m.b.start = start
		}
		if end.After(m.b.end) {
			m.b.end = end
		}
		m.b.period = max(m.b.period, p.Period)
	}
	m.n++
	for _, s := range p.Sample {
		m.b.Add(s.Location, s.Value...)
		if len(m.b.samples) > maxMerged {
			return fmt.Errorf("%w: more than %d different stacks: choose a shorter time range or fewer containers",
				ErrTooLarge, maxMerged)
		}
	}
	m.b.forgetIdentity()
	return nil
}

// Len is how many profiles were added.
func (m *Merger) Len() int { return m.n }

// Counts says what had to be changed or left out; see [Counts].
func (m *Merger) Counts() Counts {
	if m.b == nil {
		return Counts{}
	}
	return m.b.Counts()
}

// Profile returns the sum as one profile, however large, in canonical order. It spans from the earliest start to the latest
// end; its duration is that span, so profiles of several containers over the same minute are a minute long. It is an error
// if nothing was added.
func (m *Merger) Profile() (*profile.Profile, error) {
	if m.b == nil {
		return nil, errors.New("no profiles to merge")
	}
	if m.b.err != nil {
		return nil, m.b.err
	}
	p := m.b.profile()
	if err := p.CheckValid(); err != nil {
		return nil, fmt.Errorf("merge of %d profiles is invalid: %w", m.n, err)
	}
	return p, nil
}

// Profiles returns the sum gzipped and split as [Builder.Profiles] does.
func (m *Merger) Profiles() ([]Built, error) {
	if m.b == nil {
		return nil, nil
	}
	return m.b.Profiles()
}

// typeOf reads the type out of a pprof, which does not know Pyroscope's __name__; the first sample type stands in for it.
func typeOf(p *profile.Profile) sink.Type {
	var t sink.Type
	for _, s := range p.SampleType {
		t.Samples = append(t.Samples, sink.ValueType{Type: s.Type, Unit: s.Unit})
	}
	if len(t.Samples) > 0 {
		t.Name = t.Samples[0].Type
	}
	if p.PeriodType != nil {
		t.Period = sink.ValueType{Type: p.PeriodType.Type, Unit: p.PeriodType.Unit}
	}
	return t
}

// Merge adds up gzipped profiles; see [Merger]. For many use a Merger, which needs only one of them at a time.
func Merge(gz ...[]byte) (*profile.Profile, error) {
	var m Merger
	for i, b := range gz {
		if err := m.Add(b); err != nil {
			return nil, fmt.Errorf("profile %d of %d: %w", i+1, len(gz), err)
		}
	}
	return m.Profile()
}

// Diff returns compare minus base in pprof's own form: base's samples with negative values and the label pprof::base, which
// pprof's tools show as a difference relative to base. base and compare are not changed.
func Diff(base, compare *profile.Profile) (*profile.Profile, error) {
	if b, c := typeOf(base), typeOf(compare); !slices.Equal(b.Samples, c.Samples) || b.Period != c.Period {
		return nil, fmt.Errorf("compare profiles: base has types %v per %v, the other %v per %v: select one profile type",
			b.Samples, b.Period, c.Samples, c.Period)
	}
	b := base.Copy()
	b.Scale(-1)
	b.SetLabel("pprof::base", []string{"true"})
	d, err := profile.Merge([]*profile.Profile{compare, b})
	if err != nil {
		return nil, fmt.Errorf("compare profiles: %w", err)
	}
	return d, nil
}
