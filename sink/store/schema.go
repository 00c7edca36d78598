package store

import (
	"context"
	"database/sql"
	"fmt"
)

const (
	// applicationID marks the file as stoker's ("stok"), schemaVersion the shape of its tables (user_version).
	applicationID = 0x73746f6b
	schemaVersion = 1

	pageSize = 4096
)

// schema is version 1. Times are nanoseconds since 1970 (UTC); JSON where a value has structure, so that any sqlite3 can read
// it: SELECT datetime(start_ns/1000000000,'unixepoch'), labels, total FROM profiles JOIN series ON series.id = series_id.
//
//   - profiles.id rises in the order of arrival and is never reused: "oldest" means lowest id, which stays true when the wall
//     clock was wrong.
//   - boottime_ns is the profile's start on CLOCK_BOOTTIME (0: not known), the time that never lies; mended = 1 says that
//     start_ns and end_ns were corrected after the pprof was built, whose own time is therefore wrong.
//   - tier is how far the row was merged (0: as written), parts the windows it was merged from: [[offset ms, length ms, total]].
//   - raw_bytes is the pprof's size before compression, what servers count.
//   - fingerprint recognises a replayed write; a merged row has none.
const schema = `
CREATE TABLE boots (
  id INTEGER PRIMARY KEY,
  boot_id TEXT NOT NULL UNIQUE,
  offset_ns INTEGER NOT NULL
);
CREATE TABLE series (
  id INTEGER PRIMARY KEY,
  type TEXT NOT NULL,
  labels TEXT NOT NULL,
  UNIQUE (type, labels)
);
CREATE TABLE profiles (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  series_id INTEGER NOT NULL REFERENCES series (id),
  container_id TEXT NOT NULL,
  start_ns INTEGER NOT NULL,
  end_ns INTEGER NOT NULL,
  boot INTEGER NOT NULL REFERENCES boots (id),
  boottime_ns INTEGER NOT NULL,
  mended INTEGER NOT NULL DEFAULT 0,
  tier INTEGER NOT NULL DEFAULT 0,
  total INTEGER NOT NULL,
  samples INTEGER NOT NULL,
  raw_bytes INTEGER NOT NULL,
  fingerprint BLOB UNIQUE,
  parts TEXT,
  pprof BLOB NOT NULL
);
CREATE INDEX profiles_time ON profiles (end_ns, start_ns, series_id, container_id);
CREATE INDEX profiles_series ON profiles (series_id, start_ns);
CREATE INDEX profiles_tier ON profiles (tier, start_ns, series_id, container_id, boot);
CREATE TABLE deliveries (
  profile_id INTEGER NOT NULL REFERENCES profiles (id) ON DELETE CASCADE,
  sink TEXT NOT NULL,
  tenant TEXT NOT NULL,
  state TEXT NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0,
  doubts INTEGER NOT NULL DEFAULT 0,
  suspicions INTEGER NOT NULL DEFAULT 0,
  next_ns INTEGER NOT NULL DEFAULT 0,
  reason TEXT NOT NULL DEFAULT '',
  PRIMARY KEY (profile_id, sink)
) WITHOUT ROWID;
CREATE INDEX deliveries_due ON deliveries (sink, state, tenant, profile_id);
CREATE TABLE evictions (
  reason TEXT NOT NULL,
  undelivered INTEGER NOT NULL,
  profiles INTEGER NOT NULL,
  bytes INTEGER NOT NULL,
  PRIMARY KEY (reason, undelivered)
) WITHOUT ROWID;
`

// checkSchema tells whether the file is ours and of our version: nil, errEmpty, ErrNewer, ErrForeign, or what SQLite says.
func checkSchema(ctx context.Context, db *sql.DB) error {
	var app, version, objects int64
	for pragma, v := range map[string]*int64{"PRAGMA application_id": &app, "PRAGMA user_version": &version, "SELECT count(*) FROM sqlite_master": &objects} {
		if err := db.QueryRowContext(ctx, pragma).Scan(v); err != nil {
			return err
		}
	}
	switch {
	case objects == 0 && version == 0:
		return errEmpty
	case app != applicationID:
		return fmt.Errorf("%w (application_id %#x): set store.path to a file of stoker's own", ErrForeign, app)
	case version > schemaVersion:
		return fmt.Errorf("%w (its schema is %d, this one knows %d): upgrade stoker, or move the file away", ErrNewer, version, schemaVersion)
	case version < 1:
		return fmt.Errorf("%w: stoker's file with schema version %d", ErrCorrupt, version)
	}
	// The tables are there: a file cut short or overwritten shows itself here rather than at the first window.
	for _, table := range []string{"boots", "series", "profiles", "deliveries", "evictions"} {
		var n int64
		err := db.QueryRowContext(ctx, "SELECT count(*) FROM (SELECT 1 FROM "+table+" LIMIT 1)").Scan(&n)
		if code(err) == 1 { // SQLITE_ERROR: no such table
			return fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// createSchema makes the tables in an empty file. auto_vacuum must be chosen before the first page is written: evicted pages
// can then be given back to the file system without rewriting the file.
func createSchema(ctx context.Context, db *sql.DB) error {
	for _, pragma := range []string{fmt.Sprintf("page_size=%d", pageSize), "auto_vacuum=INCREMENTAL"} {
		if _, err := db.ExecContext(ctx, "PRAGMA "+pragma); err != nil {
			return err
		}
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after Commit it does nothing
	if _, err := tx.ExecContext(ctx, schema+fmt.Sprintf("PRAGMA application_id=%d; PRAGMA user_version=%d;", applicationID, schemaVersion)); err != nil {
		return err
	}
	return tx.Commit()
}
