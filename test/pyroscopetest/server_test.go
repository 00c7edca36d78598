package pyroscopetest

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	googlev1 "github.com/grafana/pyroscope/api/gen/proto/go/google/v1"
	pushv1 "github.com/grafana/pyroscope/api/gen/proto/go/push/v1"
	"github.com/grafana/pyroscope/api/gen/proto/go/push/v1/pushv1connect"
	typesv1 "github.com/grafana/pyroscope/api/gen/proto/go/types/v1"
	"google.golang.org/protobuf/proto"
)

const period = 10309278 // 1e9 / 97

// good is a profile that nobody can object to: strings 0 "", 1 cpu, 2 nanoseconds, 3 main, 4 /app, 5 and up to be used.
func good(age time.Duration) *googlev1.Profile {
	return &googlev1.Profile{
		StringTable: []string{"", "cpu", "nanoseconds", "main", "/app"},
		SampleType:  []*googlev1.ValueType{{Type: 1, Unit: 2}}, PeriodType: &googlev1.ValueType{Type: 1, Unit: 2}, Period: period,
		TimeNanos: time.Now().Add(-age).UnixNano(), DurationNanos: 10e9,
		Mapping:  []*googlev1.Mapping{{Id: 1, Filename: 4, HasFunctions: true}},
		Function: []*googlev1.Function{{Id: 1, Name: 3, SystemName: 3, Filename: 4}},
		Location: []*googlev1.Location{{Id: 1, MappingId: 1, Address: 0x1000, Line: []*googlev1.Line{{FunctionId: 1, Line: 7}}}},
		Sample:   []*googlev1.Sample{{LocationId: []uint64{1}, Value: []int64{3 * period}}},
	}
}

func pairs(kv ...string) (out []*typesv1.LabelPair) {
	for i := 0; i < len(kv); i += 2 {
		out = append(out, &typesv1.LabelPair{Name: kv[i], Value: kv[i+1]})
	}
	return out
}

var cart = pairs("__name__", "process_cpu", "service_name", "cart")

func encode(t testing.TB, p *googlev1.Profile) []byte {
	t.Helper()
	raw, err := proto.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Write(raw)
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func push(t testing.TB, s *Server, tenant string, labels []*typesv1.LabelPair, profiles ...[]byte) error {
	t.Helper()
	series := &pushv1.RawProfileSeries{Labels: labels}
	for _, p := range profiles {
		series.Samples = append(series.Samples, &pushv1.RawSample{RawProfile: p})
	}
	req := connect.NewRequest(&pushv1.PushRequest{Series: []*pushv1.RawProfileSeries{series}})
	if tenant != "" {
		req.Header().Set("X-Scope-OrgID", tenant)
	}
	_, err := pushv1connect.NewPusherServiceClient(http.DefaultClient, s.URL()).Push(context.Background(), req)
	return err
}

func start(t testing.TB, o Options) *Server {
	t.Helper()
	s, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func TestGoodProfilesAreAccepted(t *testing.T) {
	s := New(t, Options{}) // a violation would fail the test
	for i := range 3 {
		if err := push(t, s, "", cart, encode(t, good(time.Duration(i)*time.Minute))); err != nil {
			t.Fatal(err)
		}
	}
	got := s.Profiles()
	if len(got) != 3 || s.Total("") != 9*period || got[0].TypeID != "process_cpu:cpu:nanoseconds:cpu:nanoseconds" || got[0].Tenant != "anonymous" || got[0].Profile == nil || got[0].Samples != 1 {
		t.Errorf("%+v", got)
	}
}

func TestRefusals(t *testing.T) {
	s := start(t, Options{})
	many := pairs("__name__", "process_cpu", "service_name", "cart")
	for i := range 28 {
		many = append(many, pairs(fmt.Sprintf("l%d", i), "v")...)
	}
	thirty := append(many[:len(many):len(many)], pairs("last", "v")...)
	withLabel := good(time.Minute)
	withLabel.StringTable = append(withLabel.StringTable, "pid", "1")
	withLabel.Sample[0].Label = []*googlev1.Label{{Key: 5, Str: 6}}
	big := good(time.Minute)
	big.StringTable = append(big.StringTable, strings.Repeat("x", 4<<20))
	for _, c := range []struct {
		name   string
		labels []*typesv1.LabelPair
		change func(*googlev1.Profile)
		raw    []byte
		code   connect.Code
		text   string
	}{
		{"no sample type", cart, func(p *googlev1.Profile) { p.SampleType = nil }, nil, connect.CodeInvalidArgument, "no sample type"},
		{"too many values", cart, func(p *googlev1.Profile) { p.Sample[0].Value = []int64{1, 2} }, nil, connect.CodeInvalidArgument, "values"},
		{"string table", cart, func(p *googlev1.Profile) { p.StringTable[0] = "x" }, nil, connect.CodeInvalidArgument, "string_table"},
		{"string index", cart, func(p *googlev1.Profile) { p.Function[0].Name = 99 }, nil, connect.CodeInvalidArgument, "outside of the table"},
		{"negative index", cart, func(p *googlev1.Profile) { p.SampleType[0].Unit = -1 }, nil, connect.CodeInvalidArgument, "outside of the table"},
		{"location id 0", cart, func(p *googlev1.Profile) { p.Location[0].Id = 0 }, nil, connect.CodeInvalidArgument, "location with id 0"},
		{"function id 0", cart, func(p *googlev1.Profile) { p.Function[0].Id = 0 }, nil, connect.CodeInvalidArgument, "function with id 0"},
		{"sample type with -", cart, func(p *googlev1.Profile) { p.StringTable[1] = "c-pu" }, nil, connect.CodeInvalidArgument, "contains -"},
		{"too old", cart, func(p *googlev1.Profile) { p.TimeNanos = time.Now().Add(-3605 * time.Second).UnixNano() }, nil, connect.CodeInvalidArgument, "ingestion window starts"},
		{"too new", cart, func(p *googlev1.Profile) { p.TimeNanos = time.Now().Add(605 * time.Second).UnixNano() }, nil, connect.CodeInvalidArgument, "ingestion window ends"},
		{"too many samples", cart, func(p *googlev1.Profile) {
			for len(p.Sample) < 16001 {
				p.Sample = append(p.Sample, p.Sample[0])
			}
		}, nil, connect.CodeInvalidArgument, "max_profile_stacktrace_samples"},
		{"too many sample labels", cart, func(p *googlev1.Profile) {
			for range 101 {
				p.Sample[0].Label = append(p.Sample[0].Label, &googlev1.Label{Key: 1, Num: 1})
			}
		}, nil, connect.CodeInvalidArgument, "101 labels"},
		{"too large", cart, nil, encode(t, big), connect.CodeInvalidArgument, "max_profile_size_bytes"},
		{"not a pprof", cart, nil, []byte("rubbish"), connect.CodeUnknown, "failed to parse"},
		{"half a gzip", cart, nil, encode(t, good(0))[:30], connect.CodeUnknown, "failed to decode"},
		{"no name", pairs("service_name", "x"), nil, nil, connect.CodeInvalidArgument, "__name__"},
		{"label twice", append(pairs("node", "a", "node", "b"), cart...), nil, nil, connect.CodeInvalidArgument, "twice"},
		{"empty label name", append(pairs("", "a"), cart...), nil, nil, connect.CodeInvalidArgument, "empty"},
		{"long label name", append(pairs(strings.Repeat("a", 1025), "a"), cart...), nil, nil, connect.CodeInvalidArgument, "too long"},
		{"long label value", append(pairs("a", strings.Repeat("a", 2049)), cart...), nil, nil, connect.CodeInvalidArgument, "too long"},
		{"31 labels", thirty, nil, nil, connect.CodeInvalidArgument, "31 label names"},
		{"31 labels with the samples'", many, nil, encode(t, withLabel), connect.CodeInvalidArgument, "31 label names"},
	} {
		raw := c.raw
		if raw == nil {
			p := good(time.Minute)
			if c.change != nil {
				c.change(p)
			}
			raw = encode(t, p)
		}
		err := push(t, s, "", c.labels, raw)
		if connect.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v (%v), want %v with %q", c.name, err, connect.CodeOf(err), c.code, c.text)
		}
	}
	if n := len(s.Profiles()); n != 0 {
		t.Errorf("%d refused profiles were recorded", n)
	}
	if err := push(t, s, "", many, encode(t, good(time.Minute))); err != nil {
		t.Errorf("30 labels: %v", err)
	}
	if err := push(t, s, "", cart); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("no profile: %v", err)
	}
}

func TestSilentLossesAreViolations(t *testing.T) {
	for _, c := range []struct {
		name      string
		labels    []*typesv1.LabelPair
		change    func(*googlev1.Profile)
		violation string
		stored    bool
	}{
		{"no samples", cart, func(p *googlev1.Profile) { p.Sample = nil }, "empty profile", false},
		{"zero values", cart, func(p *googlev1.Profile) { p.Sample[0].Value[0] = 0 }, "only zero", false},
		{"negative value", cart, func(p *googlev1.Profile) { p.Sample[0].Value[0] = -period }, "negative", false},
		{"unknown mapping", cart, func(p *googlev1.Profile) { p.Location[0].MappingId = 9 }, "unknown location or mapping", false},
		{"unknown location", cart, func(p *googlev1.Profile) { p.Sample[0].LocationId[0] = 9 }, "unknown location or mapping", false},
		{"unknown function", cart, func(p *googlev1.Profile) { p.Location[0].Line[0].FunctionId = 9 }, "unknown function", false},
		{"neither line nor address", cart, func(p *googlev1.Profile) { p.Location[0].Line, p.Location[0].Address = nil, 0 }, "neither line nor address", false},
		{"no line", cart, func(p *googlev1.Profile) { p.Location[0].Line = nil }, "without a line", true},
		{"deep stack", cart, func(p *googlev1.Profile) { p.Sample[0].LocationId = slicesRepeat(1, 1001) }, "more than 1000 frames", true},
		{"string label", cart, func(p *googlev1.Profile) { p.Sample[0].Label = []*googlev1.Label{{Key: 3, Str: 4}} }, "string sample label main", true},
		{"numeric label", cart, func(p *googlev1.Profile) { p.Sample[0].Label = []*googlev1.Label{{Key: 3, Num: 4}} }, "numeric sample label", true},
		{"dotted label", append(pairs("k8s.pod", "p"), cart...), nil, "hidden", true},
		{"reserved label", append(pairs("__session_id__", "p"), cart...), nil, "reserved", true},
		{"empty label", append(pairs("pod", ""), cart...), nil, "is dropped", true},
		{"no service_name", pairs("__name__", "process_cpu"), nil, "unknown_service", true},
		{"unknown type", pairs("__name__", "cpu", "service_name", "cart"), nil, "unknown profile type", true},
		{"type with :", pairs("__name__", "a:b", "service_name", "cart"), nil, "unknown profile type", true},
		{"period", cart, func(p *googlev1.Profile) { p.Period, p.Sample[0].Value[0] = 10_300_000, 10_300_000 }, "not 1e9", true},
		{"value", cart, func(p *googlev1.Profile) { p.Sample[0].Value[0]++ }, "no multiple", true},
		{"no time", cart, func(p *googlev1.Profile) { p.TimeNanos = 0 }, "no time", true},
		{"no duration", cart, func(p *googlev1.Profile) { p.DurationNanos = 0 }, "no duration", true},
		{"no has_functions", cart, func(p *googlev1.Profile) { p.Mapping[0].HasFunctions = false }, "has_functions", true},
		{"not split", cart, func(p *googlev1.Profile) { p.StringTable = append(p.StringTable, strings.Repeat("x", 2_000_000)) }, "split", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := start(t, Options{})
			p := good(time.Minute)
			if c.change != nil {
				c.change(p)
			}
			if err := push(t, s, "", c.labels, encode(t, p)); err != nil {
				t.Fatalf("a real server takes it: %v", err)
			}
			if got := fmt.Sprint(s.Violations()); !strings.Contains(got, c.violation) {
				t.Errorf("violations %s, want %q", got, c.violation)
			}
			if got := len(s.Profiles()) == 1; got != c.stored {
				t.Errorf("stored: %v, want %v", got, c.stored)
			}
		})
	}
}

func slicesRepeat(v uint64, n int) (out []uint64) {
	for range n {
		out = append(out, v)
	}
	return out
}

func TestNothingIsDeduplicatedAndBatchesAreNotAtomic(t *testing.T) {
	s := start(t, Options{})
	a, b := encode(t, good(time.Minute)), encode(t, good(2*time.Hour))
	for range 2 {
		if err := push(t, s, "", cart, a); err != nil {
			t.Fatal(err)
		}
	}
	if got := fmt.Sprint(s.Violations()); s.Total("") != 6*period || !strings.Contains(got, "sent twice") {
		t.Errorf("total %d, violations %v", s.Total(""), got)
	}
	c := encode(t, good(3*time.Minute))
	if err := push(t, s, "", cart, c, b); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("[good, too old]: %v", err)
	}
	if err := push(t, s, "", cart, []byte("x"), encode(t, good(4*time.Minute))); connect.CodeOf(err) != connect.CodeUnknown {
		t.Errorf("[undecodable, good]: %v", err)
	}
	if s.Total("") != 12*period || !strings.Contains(fmt.Sprint(s.Violations()), "atomic") {
		t.Errorf("total %d: the good ones of a batch are stored", s.Total(""))
	}
	// Parts of a split profile: equal labels and time, other bytes.
	s.ClearViolations()
	p, q := good(5*time.Minute), good(5*time.Minute)
	q.TimeNanos = p.TimeNanos
	q.Sample[0].Value[0] = period
	for _, x := range []*googlev1.Profile{p, q} {
		if err := push(t, s, "", cart, encode(t, x)); err != nil {
			t.Fatal(err)
		}
	}
	if v := s.Violations(); len(v) != 0 {
		t.Errorf("parts of a split profile: %v", v)
	}
}

func TestTenants(t *testing.T) {
	s := New(t, Options{MultiTenant: true})
	for _, id := range []string{"", ".", "..", "a|b", "a b", strings.Repeat("x", 151), "ä"} {
		if err := push(t, s, id, cart, encode(t, good(time.Minute))); connect.CodeOf(err) != connect.CodeUnauthenticated {
			t.Errorf("tenant %q: %v", id, err)
		}
	}
	for i, id := range []string{"a", "b", "a", "x!_.*'()-9" + strings.Repeat("x", 140)} {
		if err := push(t, s, id, cart, encode(t, good(time.Duration(i)*time.Minute))); err != nil {
			t.Errorf("tenant %q: %v", id, err)
		}
	}
	if s.Total("a") != 6*period || s.Total("b") != 3*period {
		t.Errorf("a has %d, b has %d", s.Total("a"), s.Total("b"))
	}
}

func TestRateIsChargedBeforeValidation(t *testing.T) {
	s := start(t, Options{Rate: 1, Burst: 1000})
	small := good(time.Minute)
	bad := good(2 * time.Hour)
	if err := push(t, s, "", cart, encode(t, bad)); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Fatal(err)
	}
	var err error
	n := 0
	for ; err == nil && n < 100; n++ {
		small.TimeNanos++
		err = push(t, s, "", cart, encode(t, small))
	}
	if connect.CodeOf(err) != connect.CodeResourceExhausted || n < 2 || n > 20 {
		t.Errorf("after %d pushes: %v", n, err)
	}
	huge := good(time.Minute)
	huge.StringTable = append(huge.StringTable, strings.Repeat("x", 2000))
	if err := push(t, s, "", cart, encode(t, huge)); connect.CodeOf(err) != connect.CodeResourceExhausted || !strings.Contains(fmt.Sprint(s.Violations()), "never passes") {
		t.Errorf("%v, violations %v", err, s.Violations())
	}
}

func TestTransport(t *testing.T) {
	s := New(t, Options{Username: "u", Password: "p"})
	body, err := proto.Marshal(&pushv1.PushRequest{Series: []*pushv1.RawProfileSeries{{Labels: cart, Samples: []*pushv1.RawSample{{RawProfile: encode(t, good(time.Minute))}}}}})
	if err != nil {
		t.Fatal(err)
	}
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	z.Write(body)
	z.Close()
	for _, c := range []struct {
		name, method, path, contentType, encoding, password string
		body                                                []byte
		status                                              int
	}{
		{"gzipped", "POST", "/push.v1.PusherService/Push", "application/proto", "gzip", "p", zipped.Bytes(), 200},
		{"wrong password", "POST", "/push.v1.PusherService/Push", "application/proto", "", "q", body, 401},
		{"GET", "GET", "/push.v1.PusherService/Push", "application/proto", "", "p", nil, 405},
		{"other path", "POST", "/ingest", "application/proto", "", "p", body, 404},
		{"trailing slash", "POST", "/push.v1.PusherService/Push/", "application/proto", "", "p", body, 404},
		{"other type", "POST", "/push.v1.PusherService/Push", "application/x-protobuf", "", "p", body, 415},
		{"unknown encoding", "POST", "/push.v1.PusherService/Push", "application/proto", "br", "p", body, 501},
		{"not gzip", "POST", "/push.v1.PusherService/Push", "application/proto", "gzip", "p", body, 400},
	} {
		req, err := http.NewRequest(c.method, s.URL()+c.path, bytes.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth("u", c.password)
		req.Header.Set("Content-Type", c.contentType)
		req.Header.Set("Accept-Encoding", "identity")
		if c.encoding != "" {
			req.Header.Set("Content-Encoding", c.encoding)
		}
		res, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		reply, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != c.status {
			t.Errorf("%s: %s %s, want %d", c.name, res.Status, reply, c.status)
		}
		if c.status == 200 && res.Header.Get("Content-Encoding") != "gzip" {
			t.Errorf("%s: a gzipped request is answered gzipped, whatever was asked for: %v", c.name, res.Header)
		}
	}
	if len(s.Profiles()) != 1 {
		t.Errorf("%d profiles, want 1", len(s.Profiles()))
	}
}

func TestCloseEndsHangingRequests(t *testing.T) {
	s := start(t, Options{})
	s.Inject(Fault{Hang: true, Store: true}, -1)
	done := make(chan error, 1)
	go func() { done <- push(t, s, "", cart, encode(t, good(time.Minute))) }()
	for s.Requests() == 0 || len(s.Profiles()) == 0 {
		time.Sleep(time.Millisecond)
	}
	s.Close()
	s.Close()
	if err := <-done; err == nil {
		t.Error("a withheld reply arrived")
	}
}

// What a client may send must never take the receiver down: it stands in front of a demo.
func FuzzProfile(f *testing.F) {
	raw, err := proto.Marshal(good(time.Minute))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add(encode(f, good(time.Minute)))
	f.Add([]byte{0x1f, 0x8b, 8})
	odd := good(0)
	odd.PeriodType = nil
	odd.Sample[0].Label = []*googlev1.Label{{Key: -1, Str: 1 << 40}}
	if raw, err = proto.Marshal(odd); err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	s := start(f, Options{Rate: -1, Discard: true})
	f.Fuzz(func(t *testing.T, data []byte) {
		it, err := decode(cart, data)
		if err == nil {
			s.accept("t", nil, it) //nolint:errcheck // a refusal is fine
		}
	})
}
