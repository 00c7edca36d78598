package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"github.com/stoker-profiler/stoker/sink"
)

// The states of a delivery.
const (
	Pending   = "pending"   // to be sent, or to be sent again
	Sending   = "sending"   // claimed; one that a killed agent left behind is a doubt
	Delivered = "delivered" // the server said it has it
	Refused   = "refused"   // the server will never take it: the reason says why; kept for the local UI
	Uncertain = "uncertain" // the reply was lost, and it is not sent again: the server may have it
)

// What to do when a reply was lost: DeliverConfig.Uncertain.
const (
	Resend = "resend" // send once more: may be counted twice
	Keep   = "keep"   // do not: may be missing
)

// DeliverConfig says how one endpoint is fed. The zero value means the defaults.
type DeliverConfig struct {
	// InFlight is how many requests may be under way at once; default 8. A Pyroscope server answers after half a second.
	InFlight int
	// BytesPerSecond paces the profiles of one tenant by their size before compression, Burst is how much may go at once;
	// default 3.5 MiB/s and 2,000,000: just below the 4 MiB/s and 2 MiB that a Pyroscope server grants a tenant, for requests
	// do not arrive as evenly as they leave.
	BytesPerSecond, Burst int64
	// MinBackoff and MaxBackoff bound the wait after a failure; it doubles from one failure to the next, with jitter.
	// Default 500 ms and 5 min.
	MinBackoff, MaxBackoff time.Duration
	// Uncertain is Resend (default) or Keep.
	Uncertain string
	// Grace is how long requests under way may go on when the context ends; default 5 s.
	Grace time.Duration
}

const (
	// maxAfter caps what a server's Retry-After can make us wait.
	maxAfter = time.Hour
	// maxSuspicions is how often one profile may fail as suspect while the endpoint takes others.
	maxSuspicions = 5
	// pollDeliveries is the longest sleep between two looks for due deliveries.
	pollDeliveries = 30 * time.Second
)

func (c DeliverConfig) withDefaults() (DeliverConfig, error) {
	c.InFlight = cmp.Or(c.InFlight, 8)
	c.BytesPerSecond = cmp.Or(c.BytesPerSecond, 7<<19)
	c.Burst = cmp.Or(c.Burst, 2_000_000)
	c.MinBackoff = cmp.Or(c.MinBackoff, 500*time.Millisecond)
	c.MaxBackoff = cmp.Or(c.MaxBackoff, 5*time.Minute)
	c.Uncertain = cmp.Or(c.Uncertain, Resend)
	c.Grace = cmp.Or(c.Grace, 5*time.Second)
	if c.Uncertain != Resend && c.Uncertain != Keep {
		return c, fmt.Errorf("uncertain is %q: it must be %q or %q", c.Uncertain, Resend, Keep)
	}
	if c.InFlight < 0 || c.BytesPerSecond < 0 || c.Burst < 0 || c.MinBackoff < 0 || c.MaxBackoff < c.MinBackoff || c.Grace < 0 {
		return c, fmt.Errorf("delivery settings out of range: %+v", c)
	}
	return c, nil
}

// deliverer is the loop of one endpoint. Its goroutine owns all of it; only send runs elsewhere.
type deliverer struct {
	s    *Store
	up   sink.Uploader
	cfg  DeliverConfig
	log  *slog.Logger
	wake chan struct{}

	lanes       map[string]*lane // by tenant: a server's limits and refusals are per tenant
	inFlight    int
	answers     chan answer
	unsettled   []answer         // answers that could not be written yet: nothing else is claimed before they are
	broken      bool             // the store failed at the last try; logged once
	lastSuspect map[int64]uint64 // profile → the lane's taken when it last failed as suspect

	refusals    int // since the last line in the log
	lastRefusal time.Time
}

// lane is the way to one tenant of the endpoint.
type lane struct {
	tenant   string
	limiter  *rate.Limiter
	inFlight int
	failures int       // in a row, each from a request that began after the one before had failed
	failedAt time.Time // when the last of them was noticed
	until    time.Time // nothing is sent before
	taken    uint64    // profiles the server took
}

// claim is one delivery under way.
type claim struct {
	id         int64
	lane       *lane
	attempts   int
	doubts     int
	suspicions int
	size       int64
	profile    sink.Profile
	damaged    error // the row cannot be read: refused without being sent
	began      time.Time
}

// answer is what became of a claim.
type answer struct {
	*claim
	sink.Result
}

// Deliver sends the store's pending deliveries of the uploader's name until ctx ends, and then returns nil. One loop per
// name: a second one is an error.
//
// Each delivery is marked as being sent, durably, before the first byte goes out, and settled by the answer. The newest
// profile goes first, so that a backlog does not delay what people look at. A failure (not connected, 429, 503, …) makes the
// endpoint's tenant wait, longer each time, and then try with a single request until one gets through; other tenants and other
// endpoints go on. A refusal is kept with its reason and is in nobody's way.
func (s *Store) Deliver(ctx context.Context, up sink.Uploader, cfg DeliverConfig) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return fmt.Errorf("deliver to %s: %w", up.Name(), err)
	}
	wake, err := s.startDeliver(up.Name())
	if err != nil {
		return err
	}
	defer s.endDeliver(up.Name())
	d := &deliverer{
		s: s, up: up, cfg: cfg, wake: wake, log: s.log.With("sink", up.Name()),
		lanes: map[string]*lane{}, answers: make(chan answer, cfg.InFlight), lastSuspect: map[int64]uint64{},
	}
	return d.run(ctx)
}

func (s *Store) startDeliver(name string) (chan struct{}, error) {
	if err := s.writable(); err != nil {
		return nil, fmt.Errorf("deliver to %s: %w", name, err)
	}
	s.deliver.Lock()
	defer s.deliver.Unlock()
	if _, ok := s.deliver.running[name]; ok {
		return nil, fmt.Errorf("deliver to %s: already running: give each endpoint a name of its own", name)
	}
	wake := make(chan struct{}, 1)
	s.deliver.running[name] = wake
	return wake, nil
}

func (s *Store) endDeliver(name string) {
	s.deliver.Lock()
	defer s.deliver.Unlock()
	delete(s.deliver.running, name)
}

// wakeDeliver tells all loops that there is something new.
func (s *Store) wakeDeliver() {
	s.deliver.Lock()
	defer s.deliver.Unlock()
	for _, wake := range s.deliver.running {
		select {
		case wake <- struct{}{}:
		default: // it is awake already
		}
	}
}

func (d *deliverer) run(ctx context.Context) error {
	// Requests outlive ctx by the grace period: what is under way gets its chance to be answered.
	sendCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	recovered := false
	for ctx.Err() == nil {
		wait := pollDeliveries
		if !recovered {
			recovered = d.storeOK(d.recover(ctx))
		}
		if len(d.unsettled) > 0 {
			d.settle(ctx)
		}
		if recovered && len(d.unsettled) == 0 {
			claims, next, err := d.claim(ctx)
			if d.storeOK(err) {
				wait = min(wait, next)
			}
			for _, c := range claims {
				d.start(sendCtx, c)
			}
		}
		if d.broken {
			wait = time.Second
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-d.wake:
		case <-t.C:
		case a := <-d.answers:
			d.take(a)
		}
		t.Stop()
	}
	// The end: wait for what is under way, then cut it off; a request that was written becomes a doubt.
	grace := time.AfterFunc(d.cfg.Grace, cancel)
	defer grace.Stop()
	for d.inFlight > 0 {
		d.take(<-d.answers)
	}
	d.settle(context.WithoutCancel(ctx))
	if n := len(d.unsettled); n > 0 {
		return fmt.Errorf("deliver to %s: the answers for %d profiles could not be stored; they count as uncertain", d.up.Name(), n)
	}
	return nil
}

// take notes an answer, and those that came with it: the requests of a batch end together, and are settled together.
func (d *deliverer) take(a answer) {
	for {
		d.inFlight--
		a.lane.inFlight--
		d.unsettled = append(d.unsettled, a)
		d.judge(a)
		select {
		case a = <-d.answers:
		default:
			return
		}
	}
}

// storeOK logs the first of a row of failures to use the store, and its end.
func (d *deliverer) storeOK(err error) bool {
	if err == nil {
		if d.broken {
			d.log.Info("the store works again: delivering")
		}
		d.broken = false
		return true
	}
	if !d.broken && !errors.Is(err, context.Canceled) {
		d.log.Error("deliveries cannot be read or written; nothing is sent until they can", "err", remedy(err))
	}
	d.broken = true
	if isCorrupt(err) {
		d.s.suspect.Store(true)
	}
	return false
}

// recover settles what a killed agent left in flight, and makes everything due: a restart is often the operator's answer to a
// failing endpoint.
func (d *deliverer) recover(ctx context.Context) error {
	var left int64
	err := d.s.transact(ctx, false, func(tx *sql.Tx, _ *database) error {
		r, err := tx.ExecContext(ctx, `UPDATE deliveries SET doubts = doubts + 1, state = CASE WHEN doubts = 0 AND ? THEN 'pending' ELSE 'uncertain' END,
			reason = 'stoker ended while this was being sent: the server may have it' WHERE sink = ? AND state = 'sending'`, d.cfg.Uncertain == Resend, d.up.Name())
		if err != nil {
			return err
		}
		if left, err = r.RowsAffected(); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, "UPDATE deliveries SET next_ns = 0 WHERE sink = ? AND state = 'pending' AND next_ns > 0", d.up.Name())
		return err
	})
	if err == nil && left > 0 {
		d.s.n.count(d.up.Name(), "uncertain", uint64(left))
		d.log.Warn("profiles were being sent when stoker ended: the server may have them", "profiles", left, "uncertain", d.cfg.Uncertain)
	}
	return err
}

// due is a row that may be claimed.
type due struct {
	id, size int64
	lane     *lane
}

// claim picks what may be sent now, newest first and one tenant after the other, and marks it as being sent. It returns how
// long there is nothing to do for it otherwise.
func (d *deliverer) claim(ctx context.Context) ([]*claim, time.Duration, error) {
	free := d.cfg.InFlight - d.inFlight
	if free <= 0 {
		return nil, pollDeliveries, nil // an answer wakes us
	}
	picked, wait, err := d.pick(ctx, free)
	if err != nil || len(picked) == 0 {
		return nil, wait, err
	}
	var claims []*claim
	// Full: what may have left this machine must be known after a power cut.
	err = d.s.transact(ctx, true, func(tx *sql.Tx, _ *database) error {
		for _, p := range picked {
			r, err := tx.ExecContext(ctx, claimDelivery, p.id, d.up.Name())
			if err != nil {
				return err
			}
			if n, err := r.RowsAffected(); err != nil {
				return err
			} else if n == 0 {
				continue // evicted or merged into another row since it was picked
			}
			c, err := load(ctx, tx, p.id, d.up.Name())
			if err != nil {
				return err
			}
			c.lane, c.size = p.lane, p.size
			claims = append(claims, c)
		}
		return nil
	})
	if err != nil {
		return nil, time.Second, err
	}
	return claims, wait, nil
}

// The statements that run with every request.
const (
	firstTenant = "SELECT tenant FROM deliveries WHERE sink = ? AND state = 'pending' ORDER BY tenant LIMIT 1"
	nextTenant  = "SELECT tenant FROM deliveries WHERE sink = ? AND state = 'pending' AND tenant > ? ORDER BY tenant LIMIT 1"
	// A next try far beyond any wait of ours was noted by a clock that has been set back since.
	dueOfTenant = `SELECT d.profile_id, p.raw_bytes + length(s.labels) FROM deliveries d
		JOIN profiles p ON p.id = d.profile_id JOIN series s ON s.id = p.series_id
		WHERE d.sink = ? AND d.state = 'pending' AND d.tenant = ? AND (d.next_ns <= ? OR d.next_ns > ?)
		ORDER BY d.profile_id DESC LIMIT ?`
	claimDelivery = "UPDATE deliveries SET state = 'sending', attempts = attempts + 1 WHERE profile_id = ? AND sink = ? AND state = 'pending'"
)

// pick chooses up to free due rows of the lanes that may send now.
func (d *deliverer) pick(ctx context.Context, free int) ([]due, time.Duration, error) {
	db, release, err := d.s.use()
	if err != nil {
		return nil, 0, err
	}
	defer release()
	now, wall := time.Now(), d.s.cfg.Clock.Now().UnixNano()
	wait := pollDeliveries
	sooner := func(t time.Duration) { wait = min(wait, max(t, time.Millisecond)) }
	var ready []*lane
	tenant, some := "", false
	for { // one look into the index per tenant
		q, args := firstTenant, []any{d.up.Name()}
		if some {
			q, args = nextTenant, append(args, tenant)
		}
		err := db.r.QueryRowContext(ctx, q, args...).Scan(&tenant)
		if errors.Is(err, sql.ErrNoRows) {
			break
		}
		if err != nil {
			return nil, 0, err
		}
		some = true
		l := d.lane(tenant)
		switch {
		case now.Before(l.until):
			sooner(l.until.Sub(now))
		case l.failures > 0 && l.inFlight > 0: // one probe at a time until the server answers
		default:
			ready = append(ready, l)
		}
	}
	rand.Shuffle(len(ready), func(i, j int) { ready[i], ready[j] = ready[j], ready[i] }) // no tenant is always first
	var out []due
	for i, l := range ready {
		share := (free - len(out) + len(ready) - i - 1) / (len(ready) - i)
		if l.failures > 0 {
			share = min(share, 1)
		}
		if share <= 0 {
			continue
		}
		rows, err := db.r.QueryContext(ctx, dueOfTenant, d.up.Name(), l.tenant, wall, wall+int64(max(maxAfter, d.cfg.MaxBackoff)), share)
		if err != nil {
			return nil, 0, err
		}
		for rows.Next() {
			r := due{lane: l}
			if err := rows.Scan(&r.id, &r.size); err != nil {
				rows.Close()
				return nil, 0, err
			}
			need := min(r.size, d.cfg.Burst)
			if have := int64(l.limiter.TokensAt(now)); have < need {
				sooner(time.Duration(float64(need-have) / float64(d.cfg.BytesPerSecond) * 1e9))
				break
			}
			l.limiter.AllowN(now, int(need))
			out = append(out, r)
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return nil, 0, err
		}
	}
	if len(out) == 0 && len(ready) > 0 {
		// Rows with a wait of their own.
		var next sql.NullInt64
		if err := db.r.QueryRowContext(ctx, "SELECT min(next_ns) FROM deliveries WHERE sink = ? AND state = 'pending' AND next_ns > ?", d.up.Name(), wall).Scan(&next); err != nil {
			return nil, 0, err
		}
		if next.Valid {
			sooner(time.Duration(next.Int64 - wall))
		}
	}
	return out, wait, nil
}

func (d *deliverer) lane(tenant string) *lane {
	l := d.lanes[tenant]
	if l == nil {
		l = &lane{tenant: tenant, limiter: rate.NewLimiter(rate.Limit(d.cfg.BytesPerSecond), int(d.cfg.Burst))}
		d.lanes[tenant] = l
	}
	return l
}

// load reads a claimed row.
func load(ctx context.Context, tx *sql.Tx, id int64, sinkName string) (*claim, error) {
	c := &claim{id: id}
	var typ, lbl string
	var start, end, boottime int64
	var mended bool
	p := &c.profile
	err := tx.QueryRowContext(ctx, `SELECT s.type, s.labels, p.container_id, p.start_ns, p.end_ns, p.boottime_ns, p.mended, p.total, p.samples, p.pprof,
			d.tenant, d.attempts, d.doubts, d.suspicions
		FROM profiles p JOIN series s ON s.id = p.series_id JOIN deliveries d ON d.profile_id = p.id AND d.sink = ? WHERE p.id = ?`, sinkName, id).
		Scan(&typ, &lbl, &p.ContainerID, &start, &end, &boottime, &mended, &p.Total, &p.Samples, &p.Pprof, &p.Tenant, &c.attempts, &c.doubts, &c.suspicions)
	if err != nil {
		return nil, err
	}
	p.Start, p.End, p.BootStart = unixNano(start), unixNano(end), time.Duration(boottime)
	if p.Type, c.damaged = decodeType(typ); c.damaged == nil {
		p.Labels, c.damaged = decodeLabels(lbl)
	}
	if c.damaged == nil && mended {
		p.Pprof, c.damaged = retime(p.Pprof, start, end)
	}
	return c, nil
}

// start sends a claim in a goroutine of its own.
func (d *deliverer) start(ctx context.Context, c *claim) {
	d.inFlight++
	c.lane.inFlight++
	c.began = time.Now()
	go func() {
		if c.damaged != nil {
			d.answers <- answer{c, sink.Result{Outcome: sink.Refused, Reason: "the stored profile is damaged: " + c.damaged.Error()}}
			return
		}
		r := sink.Result{Outcome: sink.Uncertain, Reason: "the uploader gave no answer"}
		if rs := d.up.Send(ctx, []sink.Profile{c.profile}); len(rs) > 0 {
			r = rs[0]
		}
		c.profile.Pprof = nil // the answer does not need it
		d.answers <- answer{c, r}
	}()
}

// judge draws the consequences of an answer for its lane.
func (d *deliverer) judge(a answer) {
	l := a.lane
	log := d.log
	if l.tenant != "" {
		log = log.With("tenant", l.tenant)
	}
	if a.Outcome == sink.Delivered || a.Outcome == sink.Refused {
		if a.Outcome == sink.Delivered {
			l.taken++
		}
		if l.failures > 0 {
			log.Info("delivering again", "failed_tries", l.failures)
		}
		l.failures, l.until = 0, time.Time{}
		return
	}
	if l.failures > 0 && a.began.Before(l.failedAt) {
		return // it went out beside the one that failed: one trouble, counted once
	}
	l.failures++
	l.failedAt = time.Now()
	wait := d.backoff(l.failures)
	if a.After > 0 {
		wait = min(a.After, maxAfter)
	}
	l.until = l.failedAt.Add(wait)
	if l.failures == 1 {
		log.Warn("profiles cannot be delivered; they stay in the store and are sent later", "outcome", a.Outcome.String(), "reason", a.Reason, "next_try", wait.Round(time.Millisecond))
	} else {
		log.Debug("profiles still cannot be delivered", "outcome", a.Outcome.String(), "reason", a.Reason, "failed_tries", l.failures, "next_try", wait.Round(time.Millisecond))
	}
}

// backoff returns the wait after the n-th failure in a row: doubled each time, then shortened by up to a half, so that a
// fleet of agents does not come back at once.
func (d *deliverer) backoff(n int) time.Duration {
	wait := d.cfg.MaxBackoff
	if n < 30 {
		wait = min(wait, d.cfg.MinBackoff<<(n-1))
	}
	return wait/2 + rand.N(wait/2+1)
}

// settlement is what an answer makes of its row.
type settlement struct {
	state              string
	doubts, suspicions int
	next               time.Duration
	reason             string
	result             string // for the metric
}

// decide turns an answer into a settlement.
func (d *deliverer) decide(a answer) settlement {
	out := settlement{doubts: a.doubts, suspicions: a.suspicions, reason: a.Reason, result: a.Outcome.String()}
	switch a.Outcome {
	case sink.Delivered:
		out.state, out.reason = Delivered, ""
		if a.doubts > 0 {
			out.reason, out.result = "sent again after a reply was lost: the server may count it twice", "delivered_in_doubt"
		}
	case sink.Refused:
		out.state = Refused
	case sink.Retry:
		out.state, out.next = Pending, time.Until(a.lane.until)
		if !a.Suspect {
			break
		}
		// Only a profile that fails while others get through is at fault.
		at, known := d.lastSuspect[a.id]
		if out.suspicions == 0 || (known && a.lane.taken > at) {
			out.suspicions++
		}
		d.lastSuspect[a.id] = a.lane.taken
		out.next = max(out.next, d.backoff(out.suspicions+2))
		if out.suspicions >= maxSuspicions {
			out.state, out.result = Refused, "refused"
			out.reason = fmt.Sprintf("given up after %d tries, for the server took other profiles meanwhile: %s", a.attempts, a.Reason)
		}
	default: // sink.Uncertain, and what no uploader should say
		out.result = "uncertain"
		out.doubts++
		out.state = Uncertain
		if d.cfg.Uncertain == Resend && a.doubts == 0 {
			out.state, out.next = Pending, time.Until(a.lane.until)
		}
	}
	if out.state != Pending {
		delete(d.lastSuspect, a.id)
	}
	return out
}

// settle writes the answers that wait for it, in one transaction. They are kept when that fails.
func (d *deliverer) settle(ctx context.Context) {
	if len(d.unsettled) == 0 {
		return
	}
	settled := make([]settlement, len(d.unsettled))
	for i, a := range d.unsettled {
		settled[i] = d.decide(a)
	}
	now := d.s.cfg.Clock.Now()
	err := d.s.transact(ctx, false, func(tx *sql.Tx, _ *database) error {
		for i, a := range d.unsettled {
			st := settled[i]
			next := int64(0)
			if st.next > 0 {
				next = now.Add(st.next).UnixNano()
			}
			if _, err := tx.ExecContext(ctx, "UPDATE deliveries SET state = ?, doubts = ?, suspicions = ?, next_ns = ?, reason = ? WHERE profile_id = ? AND sink = ? AND state = 'sending'",
				st.state, st.doubts, st.suspicions, next, st.reason, a.id, d.up.Name()); err != nil {
				return err
			}
		}
		return nil
	})
	if !d.storeOK(err) {
		return
	}
	for i, a := range d.unsettled {
		d.s.n.count(d.up.Name(), settled[i].result, 1)
		switch settled[i].state {
		case Refused:
			d.logRefusal(a, settled[i].reason)
		case Uncertain:
			d.log.Warn("a reply was lost and the profile is not sent again: the server may have it", "service_name", a.profile.Labels["service_name"], "start", a.profile.Start, "reason", settled[i].reason)
		}
	}
	d.unsettled = slices.Delete(d.unsettled, 0, len(d.unsettled))
}

// logRefusal logs at most one refusal a minute: a server that refuses a backlog would fill the log.
func (d *deliverer) logRefusal(a answer, reason string) {
	d.refusals++
	if time.Since(d.lastRefusal) < time.Minute {
		return
	}
	d.log.Warn("the server refused profiles; they stay in the store for the local UI", "profiles", d.refusals, "service_name", a.profile.Labels["service_name"], "start", a.profile.Start, "reason", reason)
	d.refusals, d.lastRefusal = 0, time.Now()
}

// transact is update for callers that do not hold s.writer.
func (s *Store) transact(ctx context.Context, full bool, f func(tx *sql.Tx, db *database) error) error {
	s.writer.Lock()
	defer s.writer.Unlock()
	return s.update(ctx, full, f)
}

// Delivery is one delivery as `stoker store ls` shows it.
type Delivery struct {
	ProfileID   int64
	Sink        string
	Tenant      string
	State       string
	Attempts    int
	Doubts      int       // how often a reply was lost
	NextTry     time.Time // zero: as soon as possible
	Reason      string
	Type        sink.Type
	Labels      sink.Labels
	ContainerID string
	Start, End  time.Time
	Bytes       int64 // of the gzipped pprof
}

// DeliveryQuery selects deliveries; empty fields mean all.
type DeliveryQuery struct {
	Sink, State string
	Limit       int // keeps the newest; 0 means all
}

// Deliveries lists deliveries, newest profile first.
func (s *Store) Deliveries(ctx context.Context, q DeliveryQuery) ([]Delivery, error) {
	var out []Delivery
	limit := int64(q.Limit)
	if limit == 0 {
		limit = -1
	}
	err := s.read(ctx, func(ctx context.Context, tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, `SELECT d.profile_id, d.sink, d.tenant, d.state, d.attempts, d.doubts, d.next_ns, d.reason,
				s.type, s.labels, p.container_id, p.start_ns, p.end_ns, length(p.pprof)
			FROM deliveries d JOIN profiles p ON p.id = d.profile_id JOIN series s ON s.id = p.series_id
			WHERE (?1 = '' OR d.sink = ?1) AND (?2 = '' OR d.state = ?2) ORDER BY d.profile_id DESC, d.sink LIMIT ?3`, q.Sink, q.State, limit)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var d Delivery
			var typ, lbl string
			var next, start, end int64
			if err := rows.Scan(&d.ProfileID, &d.Sink, &d.Tenant, &d.State, &d.Attempts, &d.Doubts, &next, &d.Reason, &typ, &lbl, &d.ContainerID, &start, &end, &d.Bytes); err != nil {
				return err
			}
			if d.Type, err = decodeType(typ); err == nil {
				d.Labels, err = decodeLabels(lbl)
			}
			if err != nil {
				return fmt.Errorf("profile %d: %w", d.ProfileID, err)
			}
			if next > 0 {
				d.NextTry = unixNano(next)
			}
			d.Start, d.End = unixNano(start), unixNano(end)
			out = append(out, d)
		}
		return rows.Err()
	})
	return out, err
}
