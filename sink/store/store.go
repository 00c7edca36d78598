// Package store is the embedded database: history, upload queue and index of all profiles in one crash-safe SQLite file that
// any sqlite3 opens. It is the sink that is always there; uploaders get their work from it (Deliver) and keep no queue.
//
// Who calls: the agent's window goroutine calls Write; one goroutine per endpoint runs Deliver; the UI and the command line
// call Select, Series, Labels, Deliveries and Stats from anywhere, also while a window is written; another process reads the
// same file through OpenReadOnly. The store owns one goroutine of its own, which merges old windows and keeps the bounds.
//
// What is safe when: the file is in WAL mode. A window is committed with synchronous=NORMAL: a killed agent loses nothing
// that Write returned for, a power cut may lose the last seconds and never corrupts, and flash is not worn by a flush every
// window. Before a profile goes out its delivery is marked "sending" with synchronous=FULL: whatever a server may have got is
// on the medium first, so that even after a power cut it is sent again as a counted doubt and never as a fresh profile.
//
// What it never does: open a file of a container, talk to a network, change a profile's sums, forget a loss.
package store

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stoker-profiler/stoker/sink"
)

// Config says where the store is and what bounds it.
type Config struct {
	// Path of the database file; its directory is created. Beside it lie SQLite's -wal and -shm, a .lock, and after a
	// corruption the file that was set aside.
	Path string
	// MaxBytes bounds the database with its write-ahead log; 0 means 256 MiB, the least is 2 MiB.
	MaxBytes int64
	// MaxAge bounds the age of a profile's end; 0 means no bound.
	MaxAge time.Duration
	// MinFree is the share of the file system (0 to 1) that stays free: the store gives space back, oldest profiles first,
	// rather than fill the disk. 0 means it does not look.
	MinFree float64
	// Tolerant makes Open succeed when the file cannot be opened for now (permissions, a full or read-only file system): the
	// reason is logged, everything returns it, and each Write tries again. The agent can go on without a store; another
	// agent's file and a file that is not ours are still errors.
	Tolerant bool
	// Sinks are the names of the configured uploaders: each profile is written with one pending delivery for each of them.
	Sinks []string
	// Log gets what an operator should know; nil means slog.Default.
	Log *slog.Logger
	// Clock is the machine's clock unless a test has its own.
	Clock Clock
	// MaintainEvery is how often old windows are merged and bounds are checked in the background; 0 means every 30 s,
	// a negative value means only when Maintain is called.
	MaintainEvery time.Duration
	// ReadTimeout bounds one Select, Series or Labels, because a reader that never ends keeps the write-ahead log from
	// being reused; 0 means two minutes.
	ReadTimeout time.Duration
}

const (
	defaultMaxBytes      = 256 << 20
	minMaxBytes          = 2 << 20
	defaultMaintainEvery = 30 * time.Second
	defaultReadTimeout   = 2 * time.Minute
)

// Store is an open database. All methods are safe for concurrent use. It implements sink.Sink.
type Store struct {
	cfg      Config
	log      *slog.Logger
	readOnly bool
	lock     *os.File // held as long as the store is open: one agent per file

	handle  sync.Mutex
	db      *database // guarded by handle; nil after Close, while a corrupt file is being set aside and while there is none
	openErr error     // guarded by handle: why a tolerant Open has no file yet

	// writer serialises transactions and guards what follows.
	writer  sync.Mutex
	series  map[string]int64 // canonical type and labels → series.id, of committed rows
	sinks   []string
	lowDisk bool // the last look found less than MinFree
	free    func(path string) (free, total int64, err error)

	suspect atomic.Bool // a read met corruption: the next maintenance checks the file
	n       counters

	deliver struct {
		sync.Mutex
		running map[string]chan struct{} // by sink: its loop's wake-up
	}

	closed atomic.Bool
	stop   context.CancelFunc
	done   sync.WaitGroup
}

// database is one opened file: a single writing connection and a few reading ones.
type database struct {
	w, r *sql.DB
	boot int64          // boots.id of the running boot
	refs sync.WaitGroup // who uses it now: it is closed after the last of them
}

// Open opens the store for the agent and creates it when it is not there. A corrupt file is set aside beside it and a fresh
// one begun. It fails with ErrLocked when another agent has the file, ErrNewer when a later version wrote it, ErrForeign when
// it is somebody else's database, and with the remedy when the permissions are wrong.
func Open(cfg Config) (*Store, error) {
	s, err := prepare(cfg)
	if err != nil {
		return nil, err
	}
	if s.cfg.MaxBytes == 0 {
		s.cfg.MaxBytes = defaultMaxBytes
	}
	if s.cfg.MaxBytes < minMaxBytes {
		return nil, fmt.Errorf("open store %s: a bound of %d bytes is too small: set store.max_size to at least %d", cfg.Path, s.cfg.MaxBytes, minMaxBytes)
	}
	if cfg.MinFree < 0 || cfg.MinFree >= 1 {
		return nil, fmt.Errorf("open store %s: store.min_free is %v, it must be at least 0 and below 1 (5%% is 0.05)", cfg.Path, cfg.MinFree)
	}
	s.deliver.running = map[string]chan struct{}{}
	if err := s.attach(context.Background()); err != nil {
		err = fmt.Errorf("open store %s: %w", cfg.Path, remedy(err))
		if !cfg.Tolerant || errors.Is(err, ErrLocked) || errors.Is(err, ErrNewer) || errors.Is(err, ErrForeign) {
			return nil, errors.Join(err, s.unlock())
		}
		s.openErr = err
		s.log.Error("nothing is stored until this is mended; each window tries again", "err", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	if s.cfg.MaintainEvery > 0 {
		s.done.Go(func() { s.maintainLoop(ctx) })
	}
	return s, nil
}

// attach takes the lock and opens the file, if that has not been done yet. Callers hold s.writer, or own s.
func (s *Store) attach(ctx context.Context) error {
	s.handle.Lock()
	open := s.db != nil
	s.handle.Unlock()
	if open || s.closed.Load() {
		return nil
	}
	if s.lock == nil {
		if err := os.MkdirAll(filepath.Dir(s.cfg.Path), 0o750); err != nil {
			return fmt.Errorf("create its directory: %w", err)
		}
		lock, err := lockFile(s.cfg.Path + ".lock")
		if err != nil {
			return err
		}
		s.lock = lock
	}
	db, err := s.openDatabase(ctx)
	if isCorrupt(err) {
		if err = s.setAside(err); err == nil {
			db, err = s.openDatabase(ctx)
		}
	}
	if err != nil {
		return err
	}
	s.handle.Lock()
	defer s.handle.Unlock()
	if s.openErr != nil {
		s.log.Info("the store is open", "path", s.cfg.Path)
	}
	s.db, s.openErr = db, nil
	return nil
}

// unlock lets another agent have the file.
func (s *Store) unlock() error {
	if s.lock == nil {
		return nil
	}
	err := s.lock.Close()
	s.lock = nil
	return err
}

// OpenReadOnly opens the store to look at it, with or without an agent that writes to it at the same time. Nothing is
// created, merged, evicted or set aside: a corrupt file is ErrCorrupt.
func OpenReadOnly(path string) (*Store, error) {
	s, err := prepare(Config{Path: path})
	if err != nil {
		return nil, err
	}
	s.readOnly = true
	s.stop = func() {}
	// Asked rather than tried: closing a descriptor of the file would drop the locks of a store in this process.
	if err := unix.Faccessat(unix.AT_FDCWD, s.cfg.Path, unix.R_OK, unix.AT_EACCESS); err != nil {
		return nil, fmt.Errorf("open store: %w", remedy(&fs.PathError{Op: "read", Path: s.cfg.Path, Err: err}))
	}
	// Without an agent there is no -wal, and where the directory cannot be written SQLite cannot make one: then nobody
	// else can write either, and the file may be read as it is.
	for _, mode := range []string{"mode=ro", "mode=ro&immutable=1"} {
		s.db = &database{}
		s.db.r, err = s.connect(mode, readerPragmas, 4)
		if err == nil {
			if err = checkSchema(context.Background(), s.db.r); err == nil {
				return s, nil
			}
			s.db.r.Close()
		}
		if _, statErr := os.Stat(s.cfg.Path + "-wal"); statErr == nil || !isUnwritable(err) {
			break
		}
	}
	if errors.Is(err, errEmpty) {
		err = fmt.Errorf("%w: the agent has not written to it yet", err)
	}
	return nil, fmt.Errorf("open store %s: %w", path, remedy(err))
}

func prepare(cfg Config) (*Store, error) {
	if cfg.Path == "" {
		return nil, errors.New("open store: no path: set store.path")
	}
	abs, err := filepath.Abs(cfg.Path)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	cfg.Path = abs
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Clock == nil {
		cfg.Clock = machineClock{}
	}
	if cfg.MaintainEvery == 0 {
		cfg.MaintainEvery = defaultMaintainEvery
	}
	if cfg.ReadTimeout == 0 {
		cfg.ReadTimeout = defaultReadTimeout
	}
	return &Store{cfg: cfg, log: cfg.Log, sinks: cfg.Sinks, series: map[string]int64{}, free: freeSpace}, nil
}

// Every connection distrusts the file: a schema in it runs no functions, cells are checked before use.
var (
	readerPragmas = []string{"busy_timeout(5000)", "query_only(1)", "trusted_schema(0)", "cell_size_check(1)", "cache_size(-1000)", "temp_store(2)"}
	writerPragmas = []string{"busy_timeout(5000)", "foreign_keys(1)", "synchronous(1)", "trusted_schema(0)", "cell_size_check(1)", "cache_size(-2000)", "temp_store(2)"}
)

// connect opens a pool of at most n connections, each with the pragmas.
func (s *Store) connect(mode string, pragmas []string, n int) (*sql.DB, error) {
	q := mode + "&_txlock=immediate"
	if n > 1 {
		q = mode + "&_txlock=deferred"
	}
	for _, p := range pragmas {
		q += "&_pragma=" + url.QueryEscape(p)
	}
	dsn := (&url.URL{Scheme: "file", Path: s.cfg.Path, RawQuery: q}).String()
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(n)
	db.SetMaxIdleConns(n)
	return db, nil
}

// openDatabase opens the file for reading and writing, creates or checks the schema and the bounds.
func (s *Store) openDatabase(ctx context.Context) (_ *database, err error) {
	// SQLite gives -wal and -shm the mode of the file itself. Profiles name people's functions: not for everyone to read.
	// The file is closed before SQLite opens it: closing it later would drop SQLite's locks.
	f, err := os.OpenFile(s.cfg.Path, os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	f.Close()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file: set store.path to a file", s.cfg.Path)
	}
	db := &database{}
	defer func() {
		if err != nil {
			db.close()
		}
	}()
	if db.w, err = s.connect("mode=rw", writerPragmas, 1); err != nil {
		return nil, err
	}
	if err = checkSchema(ctx, db.w); errors.Is(err, errEmpty) {
		err = createSchema(ctx, db.w)
	}
	if err != nil {
		return nil, err
	}
	walPages := s.walReserve() / 4 / pageSize
	for _, pragma := range []string{"journal_mode=WAL", "wal_autocheckpoint=" + strconv.FormatInt(walPages, 10), "journal_size_limit=" + strconv.FormatInt(s.walReserve()/2, 10)} {
		if _, err = db.w.ExecContext(ctx, "PRAGMA "+pragma); err != nil {
			return nil, err
		}
	}
	if db.r, err = s.connect("mode=rw", readerPragmas, 4); err != nil {
		return nil, err
	}
	if err = s.fit(ctx, db); err != nil {
		return nil, err
	}
	if db.boot, err = s.noteBoot(ctx, db.w); err != nil {
		return nil, err
	}
	return db, nil
}

func (d *database) close() error {
	if d == nil {
		return nil
	}
	var errs []error
	if d.r != nil {
		errs = append(errs, d.r.Close())
	}
	if d.w != nil {
		errs = append(errs, d.w.Close()) // last: the last connection folds the write-ahead log into the file
	}
	return errors.Join(errs...)
}

// Name is the store's name as a sink.
func (s *Store) Name() string { return "store" }

// Path is the database file.
func (s *Store) Path() string { return s.cfg.Path }

// SetSinks replaces the names of the configured uploaders for the windows that are written from now on.
func (s *Store) SetSinks(names []string) {
	s.writer.Lock()
	defer s.writer.Unlock()
	s.sinks = names
}

// sinksJSON is the list of configured uploaders for json_each. Callers hold s.writer.
func (s *Store) sinksJSON() string {
	b, err := json.Marshal(s.sinks)
	if err != nil || s.sinks == nil {
		return "[]"
	}
	return string(b)
}

// Close ends maintenance, waits for readers and closes the file. End Deliver first. It may be called twice.
func (s *Store) Close() error {
	s.closed.Store(true)
	s.stop()
	s.done.Wait()
	s.writer.Lock()
	defer s.writer.Unlock()
	err := errors.Join(s.take().close(), s.unlock())
	if err != nil {
		return fmt.Errorf("close store %s: %w", s.cfg.Path, err)
	}
	return nil
}

// use returns the open database and a function to call when done with it. Who holds it must not wait for s.writer: setting a
// corrupt file aside waits, with s.writer, for all who use it.
func (s *Store) use() (*database, func(), error) {
	s.handle.Lock()
	defer s.handle.Unlock()
	if s.db == nil {
		return nil, nil, fmt.Errorf("store %s: %w", s.cfg.Path, cmp.Or(s.openErr, os.ErrClosed))
	}
	s.db.refs.Add(1)
	return s.db, s.db.refs.Done, nil
}

// take makes the database unavailable, waits for those who use it, and returns it for closing; nil when there is none.
// Callers hold s.writer.
func (s *Store) take() *database {
	s.handle.Lock()
	db := s.db
	s.db = nil
	s.handle.Unlock()
	if db != nil {
		db.refs.Wait()
	}
	return db
}

// writable is an error for a store that was opened to look at it.
func (s *Store) writable() error {
	if s.readOnly {
		return fmt.Errorf("store %s was opened read-only", s.cfg.Path)
	}
	return nil
}

// update runs f in one transaction on the writing connection; full makes its commit durable against a power cut. Callers
// hold s.writer.
func (s *Store) update(ctx context.Context, full bool, f func(tx *sql.Tx, db *database) error) error {
	db, release, err := s.use()
	if err != nil {
		return err
	}
	defer release()
	if full {
		if _, err := db.w.ExecContext(ctx, "PRAGMA synchronous=FULL"); err != nil {
			return err
		}
		defer db.w.ExecContext(context.WithoutCancel(ctx), "PRAGMA synchronous=NORMAL") //nolint:errcheck // FULL is only slower
	}
	tx, err := db.w.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := f(tx, db); err != nil {
		tx.Rollback() //nolint:errcheck // the first error tells more
		return err
	}
	return tx.Commit()
}

// setAside moves a corrupt file out of the way. Only the newest such file is kept: a bad medium must not fill the disk with
// copies. The database must be closed.
func (s *Store) setAside(cause error) error {
	old, err := filepath.Glob(globEscape(s.cfg.Path) + ".corrupt-*")
	if err != nil {
		return err
	}
	to := s.cfg.Path + ".corrupt-" + s.cfg.Clock.Now().UTC().Format("20060102T150405.000Z")
	for _, suffix := range []string{"-wal", "-shm", ""} { // the file itself last: until then the next start tries again
		if err := os.Rename(s.cfg.Path+suffix, to+suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("set the corrupt file aside: %w", err)
		}
	}
	s.n.setAside.Add(1)
	s.log.Error("the store is corrupt: set aside, starting with an empty one; look at it with sqlite3's .recover, or delete it", "path", s.cfg.Path, "set_aside", to, "err", cause)
	for _, f := range old {
		if err := os.Remove(f); err != nil {
			s.log.Warn("remove the file of an earlier corruption", "path", f, "err", err)
		} else {
			s.log.Warn("removed the file of an earlier corruption: only the newest is kept", "path", f)
		}
	}
	return nil
}

// replaceCorrupt closes the database, sets its file aside and begins a fresh one. The old one is closed before the new one is
// opened: on closing, SQLite removes the -wal by its name. Callers hold s.writer.
func (s *Store) replaceCorrupt(ctx context.Context, cause error) error {
	old := s.take()
	if old == nil {
		return fmt.Errorf("store %s: %w", s.cfg.Path, os.ErrClosed)
	}
	if err := old.close(); err != nil {
		s.log.Debug("close the corrupt store", "path", s.cfg.Path, "err", err)
	}
	s.series = map[string]int64{}
	err := s.setAside(cause)
	if err == nil {
		err = s.attach(ctx)
	}
	if err != nil {
		return fmt.Errorf("store %s: %w (after: %v)", s.cfg.Path, remedy(err), cause)
	}
	return nil
}

func globEscape(path string) string {
	var b []byte
	for i := range len(path) {
		switch path[i] {
		case '*', '?', '[', '\\':
			b = append(b, '\\')
		}
		b = append(b, path[i])
	}
	return string(b)
}

var _ sink.Sink = (*Store)(nil)
