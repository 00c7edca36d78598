package pyroscopetest

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"connectrpc.com/connect"
	"github.com/google/pprof/profile"
	googlev1 "github.com/grafana/pyroscope/api/gen/proto/go/google/v1"
	typesv1 "github.com/grafana/pyroscope/api/gen/proto/go/types/v1"
	"google.golang.org/protobuf/proto"
)

// The limits of a default server.
const (
	maxProfile      = 4 << 20
	maxSamples      = 16_000
	maxSampleLabels = 100
	maxLabels       = 30
	maxLabelName    = 1024
	maxLabelValue   = 2048
	maxDepth        = 1000
	maxFuture       = 10 * time.Minute

	// splitAt is where an agent must have split a profile: the burst of the rate limit is 2 MiB.
	splitAt = 1_992_294 // 1.9 MiB
)

// knownTypes are the profile types that users of Pyroscope know, as documented for its clients.
var knownTypes = map[string]bool{
	"process_cpu:cpu:nanoseconds:cpu:nanoseconds": true, "process_cpu:samples:count:cpu:nanoseconds": true,
	"offcpu:offcpu:nanoseconds::": true, "wall:wall:nanoseconds:wall:nanoseconds": true,
	"memory:alloc_objects:count:space:bytes": true, "memory:alloc_space:bytes:space:bytes": true,
	"memory:inuse_objects:count:space:bytes": true, "memory:inuse_space:bytes:space:bytes": true,
	"mutex:contentions:count:contentions:count": true, "mutex:delay:nanoseconds:contentions:count": true,
	"block:contentions:count:contentions:count": true, "block:delay:nanoseconds:contentions:count": true,
	"goroutine:goroutine:count:goroutine:count": true, "goroutines:goroutine:count:goroutine:count": true,
	"page_faults:page_faults:count:page_faults:count": true,
}

var labelName = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`)

// item is one decoded profile of a request.
type item struct {
	labels []*typesv1.LabelPair
	raw    []byte
	p      *googlev1.Profile
}

func (it *item) size() int {
	n := len(it.raw)
	for _, l := range it.labels {
		n += len(l.Name) + len(l.Value)
	}
	return n
}

// decode unpacks a raw profile. A plain error stands for the server's "unknown", a Connect error for a refusal.
func decode(labels []*typesv1.LabelPair, data []byte) (item, error) {
	if bytes.HasPrefix(data, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(bytes.NewReader(data))
		if err != nil {
			return item{}, fmt.Errorf("failed to decode profile: %w", err)
		}
		if data, err = io.ReadAll(io.LimitReader(z, maxProfile+1)); err != nil {
			return item{}, fmt.Errorf("failed to decode profile: %w", err)
		}
	}
	if len(data) > maxProfile {
		return item{}, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("the profile exceeds the size limit (max_profile_size_bytes, limit: %d)", maxProfile))
	}
	p := &googlev1.Profile{}
	if err := proto.Unmarshal(data, p); err != nil {
		return item{}, fmt.Errorf("failed to parse profile: %w", err)
	}
	return item{labels: labels, raw: data, p: p}, nil
}

// accept validates one profile and records it, or returns why it is refused.
func (s *Server) accept(tenant string, header http.Header, it item) error {
	refused := func(err error) error {
		s.violate("refused: %v", err)
		return connect.NewError(connect.CodeInvalidArgument, err)
	}
	labels, err := s.series(it)
	if err != nil {
		return refused(err)
	}
	// Age is no fault of a profile: an agent that was offline cannot know what the server still takes.
	if t := it.p.TimeNanos; t > 0 {
		at, now := time.Unix(0, t), s.o.Now()
		window := ""
		if s.o.RejectOlderThan > 0 && !at.After(now.Add(-s.o.RejectOlderThan)) {
			window = fmt.Sprintf("the ingestion window starts at %v", now.Add(-s.o.RejectOlderThan))
		} else if !at.Before(now.Add(maxFuture)) {
			window = fmt.Sprintf("the ingestion window ends at %v", now.Add(maxFuture))
		}
		if window != "" {
			return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("profile with labels '%v' is outside of ingestion window (profile timestamp: %v, %s)", labels, at, window))
		}
	}
	if err := checkProfile(it.p); err != nil {
		return refused(err)
	}
	r := Received{Tenant: tenant, Labels: labels, TypeID: typeID(labels["__name__"], it.p, 0), Time: time.Unix(0, it.p.TimeNanos), Header: header.Clone()}
	s.suspect(&r, it)
	if r.Samples == 0 {
		return nil // answered with success, and nothing is stored
	}
	if !s.o.Discard {
		r.Raw = it.raw
		if r.Profile, err = profile.ParseUncompressed(it.raw); err != nil {
			s.violate("%v: accepted, but not a pprof to other tools: %v", labels, err)
		}
	}
	sum := sha256.Sum256(it.raw)
	key := fmt.Sprint(tenant, labels, r.TypeID, it.p.TimeNanos, string(sum[:]))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.received = append(s.received, r)
	if s.seen[key] {
		s.violations = append(s.violations, fmt.Sprintf("%v %s of %v was sent twice: it counts twice", labels, r.TypeID, r.Time))
	}
	s.seen[key] = true
	return nil
}

// series checks the labels of an item, string labels of its samples included.
func (s *Server) series(it item) (map[string]string, error) {
	labels := map[string]string{}
	for _, l := range it.labels {
		switch {
		case l.Name == "":
			return nil, errors.New("a label name is empty")
		case !utf8.ValidString(l.Name) || !utf8.ValidString(l.Value):
			return nil, fmt.Errorf("label %q is not valid UTF-8", l.Name)
		case len(l.Name) > maxLabelName:
			return nil, fmt.Errorf("label name of %d bytes is too long", len(l.Name))
		case len(l.Value) > maxLabelValue:
			return nil, fmt.Errorf("label %s has a value of %d bytes, too long", l.Name, len(l.Value))
		}
		if _, ok := labels[l.Name]; ok {
			return nil, fmt.Errorf("label %s is there twice", l.Name)
		}
		labels[l.Name] = l.Value
		switch {
		case l.Value == "":
			s.violate("label %s is empty: it is dropped", l.Name)
		case !labelName.MatchString(l.Name):
			s.violate("label name %q is hidden from clients", l.Name)
		case strings.HasPrefix(l.Name, "__") && l.Name != "__name__":
			s.violate("label %s is reserved", l.Name)
		}
	}
	n := len(labels)
	extra := map[string]bool{}
	for _, sample := range it.p.Sample {
		for _, l := range sample.Label {
			if l.Str != 0 && int(l.Key) < len(it.p.StringTable) && l.Key >= 0 {
				extra[it.p.StringTable[l.Key]] = true
			}
		}
	}
	for name := range extra {
		if _, ok := labels[name]; !ok {
			n++
		}
	}
	if n > maxLabels {
		return nil, fmt.Errorf("profile series has %d label names; limit %d", n, maxLabels)
	}
	if labels["__name__"] == "" {
		return nil, errors.New("profile name (label __name__) is missing")
	}
	if labels["service_name"] == "" {
		s.violate("%v has no service_name: it becomes unknown_service", labels)
		labels["service_name"] = "unknown_service"
	}
	return labels, nil
}

// checkProfile finds what the server refuses in a profile.
func checkProfile(p *googlev1.Profile) error {
	if len(p.SampleType) == 0 {
		return errors.New("profile has no sample type")
	}
	if len(p.Sample) > maxSamples {
		return fmt.Errorf("the profile exceeds the samples limit (max_profile_stacktrace_samples, actual: %d, limit: %d)", len(p.Sample), maxSamples)
	}
	if len(p.StringTable) == 0 || p.StringTable[0] != "" {
		return errors.New("string_table[0] must be empty")
	}
	for i, s := range p.StringTable {
		if !utf8.ValidString(s) {
			return fmt.Errorf("string %d is not valid UTF-8", i)
		}
	}
	text := func(i int64) error {
		if i < 0 || i >= int64(len(p.StringTable)) {
			return fmt.Errorf("string index %d is outside of the table of %d", i, len(p.StringTable))
		}
		return nil
	}
	var errs []error
	for _, t := range p.SampleType {
		errs = append(errs, text(t.Type), text(t.Unit))
		if text(t.Type) == nil && strings.Contains(p.StringTable[t.Type], "-") {
			errs = append(errs, fmt.Errorf("sample type %q contains -", p.StringTable[t.Type]))
		}
	}
	if p.PeriodType != nil {
		errs = append(errs, text(p.PeriodType.Type), text(p.PeriodType.Unit))
	}
	for _, s := range p.Sample {
		if len(s.Value) != len(p.SampleType) {
			errs = append(errs, fmt.Errorf("sample with %d values, there are %d sample types", len(s.Value), len(p.SampleType)))
		}
		if len(s.Label) > maxSampleLabels {
			errs = append(errs, fmt.Errorf("sample with %d labels; limit %d", len(s.Label), maxSampleLabels))
		}
		for _, l := range s.Label {
			errs = append(errs, text(l.Key), text(l.Str), text(l.NumUnit))
		}
	}
	for _, l := range p.Location {
		if l.Id == 0 {
			errs = append(errs, errors.New("location with id 0"))
		}
	}
	for _, f := range p.Function {
		if f.Id == 0 {
			errs = append(errs, errors.New("function with id 0"))
		}
		errs = append(errs, text(f.Name), text(f.SystemName), text(f.Filename))
	}
	for _, m := range p.Mapping {
		errs = append(errs, text(m.Filename), text(m.BuildId))
	}
	for _, c := range p.Comment {
		errs = append(errs, text(c))
	}
	return errors.Join(errs...)
}

func typeID(name string, p *googlev1.Profile, i int) string {
	t := p.SampleType[i]
	period, unit := "", ""
	if p.PeriodType != nil {
		period, unit = p.StringTable[p.PeriodType.Type], p.StringTable[p.PeriodType.Unit]
	}
	return strings.Join([]string{name, p.StringTable[t.Type], p.StringTable[t.Unit], period, unit}, ":")
}

// suspect notes what the server takes and loses, and sets r's totals to what remains.
func (s *Server) suspect(r *Received, it item) {
	p := it.p
	// One line for each kind of trouble, however many samples have it.
	trouble := map[string]int{}
	for i := range p.SampleType {
		id := typeID(r.Labels["__name__"], p, i)
		if !knownTypes[id] || strings.Count(id, ":") != 4 || strings.Contains(id, "-") {
			trouble["unknown profile type "+id]++
		}
	}
	mappings, functions, locations := map[uint64]*googlev1.Mapping{}, map[uint64]bool{}, map[uint64]*googlev1.Location{}
	for _, m := range p.Mapping {
		mappings[m.Id] = m
	}
	for _, f := range p.Function {
		functions[f.Id] = true
	}
	named := map[uint64]bool{} // mappings all of whose frames have lines
	for _, l := range p.Location {
		locations[l.Id] = l
		if l.MappingId != 0 {
			was, ok := named[l.MappingId]
			named[l.MappingId] = (was || !ok) && len(l.Line) > 0
		}
	}
	for id, all := range named {
		if m := mappings[id]; all && m != nil && !m.HasFunctions {
			trouble["mapping without has_functions though all its frames have names"]++
		}
	}
	cpu := r.TypeID == "process_cpu:cpu:nanoseconds:cpu:nanoseconds"
	if cpu {
		if hz := math.Round(1e9 / float64(p.Period)); p.Period <= 0 || hz < 1 || math.Abs(1e9/hz-float64(p.Period)) > 1 {
			trouble[fmt.Sprintf("period %d is not 1e9 / Hz", p.Period)]++
		}
	}
	if p.TimeNanos <= 0 {
		trouble["no time"]++
	}
	if p.DurationNanos <= 0 {
		trouble["no duration"]++
	}
	if len(it.raw) > splitAt {
		trouble[fmt.Sprintf("%d bytes before compression: it should have been split", len(it.raw))]++
	}
	for _, sample := range p.Sample {
		lost := false
		for _, l := range sample.Label {
			switch key := p.StringTable[l.Key]; {
			case l.Str != 0 && key != "span_id" && key != "trace_id":
				trouble["string sample label "+key+": a series for each value"]++
			case l.Str == 0:
				trouble["numeric sample label "+key+": deleted"]++
			}
		}
		if len(sample.LocationId) > maxDepth {
			trouble[fmt.Sprintf("stack of more than %d frames: the leaf end is cut", maxDepth)]++
		}
		for _, id := range sample.LocationId {
			l := locations[id]
			switch {
			case l == nil || (l.MappingId != 0 && mappings[l.MappingId] == nil):
				trouble["unknown location or mapping: the sample is gone"]++
				lost = true
			case len(l.Line) == 0 && l.Address == 0:
				trouble["location with neither line nor address: the sample is gone"]++
				lost = true
			case len(l.Line) == 0:
				trouble["location without a line: the frame is gone"]++
			}
			if l == nil {
				continue
			}
			for _, line := range l.Line {
				if !functions[line.FunctionId] {
					trouble["unknown function: the sample is gone"]++
					lost = true
				}
			}
		}
		zero := true
		for _, v := range sample.Value {
			zero = zero && v == 0
			if v < 0 {
				trouble["negative value: the sample is gone"]++
				lost = true
			}
		}
		if zero {
			trouble["sample with only zero values"]++
			lost = true
		}
		if cpu && p.Period > 0 && sample.Value[0]%p.Period != 0 {
			trouble["CPU value that is no multiple of the period"]++
		}
		if !lost {
			r.Total += sample.Value[0]
			r.Samples++
		}
	}
	if r.Samples == 0 {
		trouble["empty profile: nothing is stored"]++
	}
	for _, what := range slices.Sorted(maps.Keys(trouble)) {
		s.violate("%s of %v: %s (%d times)", r.Labels["service_name"], r.Time.UTC().Format(time.RFC3339), what, trouble[what])
	}
}
