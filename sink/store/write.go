package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/stoker-profiler/stoker/sink"
)

// row is one profile as the table holds it.
type row struct {
	typ, labels       string // canonical JSON
	containerID       string
	start, end        int64
	boottime          int64
	total             int64
	samples, rawBytes int64
	fingerprint       []byte
	pprof             []byte
	tenant            string
}

// size is about what the row takes in the file: the blob's overflow pages, its share of tables and indexes.
func (r *row) size() int64 {
	return (int64(len(r.pprof))/pageSize+1)*pageSize + int64(3*len(r.containerID)) + 512
}

// Write stores the profiles of one window and their pending deliveries in one transaction, evicting the oldest profiles where
// a bound asks for it. Writing the same profiles again after an error adds nothing: what is there already is recognised and
// counted. On a full disk it returns ErrFull and nothing of the window is stored; the next Write tries afresh. A corrupt file
// is set aside and the window goes into a fresh one. A profile that breaks the model's promises (no service_name, no bytes, an
// end before its start) is logged and counted as invalid and does not keep the others out.
func (s *Store) Write(ctx context.Context, profiles []sink.Profile) error {
	if err := s.writable(); err != nil {
		return err
	}
	rows := s.encode(profiles)
	s.writer.Lock()
	defer s.writer.Unlock()
	err := s.attach(ctx) // a file that could not be opened before may be there now
	if err == nil {
		err = s.write(ctx, rows)
	}
	if isCorrupt(err) {
		if err = s.replaceCorrupt(ctx, err); err == nil {
			err = s.write(ctx, rows)
		}
	}
	if err != nil {
		s.n.failed(kind(err))
		return fmt.Errorf("store %s: write a window of %d profiles: %w", s.cfg.Path, len(profiles), remedy(err))
	}
	s.n.writes.Add(1)
	if len(rows) > 0 {
		s.wakeDeliver()
	}
	return nil
}

func (s *Store) write(ctx context.Context, rows []row) error {
	if _, err := s.mend(ctx); err != nil {
		return err
	}
	var incoming int64
	for i := range rows {
		incoming += rows[i].size()
	}
	if err := s.keepFree(ctx, incoming); err != nil {
		return err
	}
	err := s.insert(ctx, rows, incoming)
	if isFull(err) {
		// The estimate was short, or the disk is full but the log that was written before still has room: once more,
		// with a good deal less in the file. If that fails too, nothing was evicted either.
		if cerr := s.checkpoint(ctx, "RESTART"); cerr != nil {
			s.log.Debug("checkpoint a full store", "err", cerr)
		}
		err = s.insert(ctx, rows, 2*incoming+64*pageSize)
	}
	return err
}

// insert evicts until room bytes are free and adds the rows.
func (s *Store) insert(ctx context.Context, rows []row, room int64) error {
	if len(rows) == 0 {
		return nil
	}
	fresh := map[string]int64{}
	var written, replayed uint64
	var evicted []eviction
	err := s.update(ctx, false, func(tx *sql.Tx, db *database) (err error) {
		if evicted, err = s.makeRoom(ctx, tx, room); err != nil {
			return err
		}
		profile, err := tx.PrepareContext(ctx, `INSERT INTO profiles (series_id, container_id, start_ns, end_ns, boot, boottime_ns, total, samples, raw_bytes, fingerprint, pprof)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (fingerprint) DO NOTHING`)
		if err != nil {
			return err
		}
		defer profile.Close()
		delivery, err := tx.PrepareContext(ctx, "INSERT INTO deliveries (profile_id, sink, tenant, state) VALUES (?, ?, ?, 'pending')")
		if err != nil {
			return err
		}
		defer delivery.Close()
		for i := range rows {
			r := &rows[i]
			key := r.typ + "\x00" + r.labels
			id, ok := s.series[key]
			if !ok {
				id, ok = fresh[key]
			}
			if !ok {
				if id, err = seriesID(ctx, tx, r.typ, r.labels); err != nil {
					return err
				}
				fresh[key] = id
			}
			res, err := profile.ExecContext(ctx, id, r.containerID, r.start, r.end, db.boot, r.boottime, r.total, r.samples, r.rawBytes, r.fingerprint, r.pprof)
			if err != nil {
				return err
			}
			if n, err := res.RowsAffected(); err != nil {
				return err
			} else if n == 0 {
				replayed++
				continue
			}
			written++
			if len(s.sinks) == 0 {
				continue
			}
			pid, err := res.LastInsertId()
			if err != nil {
				return err
			}
			for _, name := range s.sinks {
				if _, err := delivery.ExecContext(ctx, pid, name, r.tenant); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for k, id := range fresh {
		s.series[k] = id
	}
	s.noteEvicted(evicted)
	s.n.written.Add(written)
	s.n.replayed.Add(replayed)
	return nil
}

func seriesID(ctx context.Context, tx *sql.Tx, typ, labels string) (id int64, err error) {
	err = tx.QueryRowContext(ctx, "SELECT id FROM series WHERE type = ? AND labels = ?", typ, labels).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		err = tx.QueryRowContext(ctx, "INSERT INTO series (type, labels) VALUES (?, ?) RETURNING id", typ, labels).Scan(&id)
	}
	return id, err
}

// encode turns profiles into rows; what breaks the model's promises is left out, logged and counted.
func (s *Store) encode(profiles []sink.Profile) []row {
	rows := make([]row, 0, len(profiles))
	seen := map[string]uint64{}
	for i := range profiles {
		p := &profiles[i]
		r, err := encodeRow(p)
		if err != nil {
			s.n.invalid.Add(1)
			s.log.Error("a profile that cannot be stored was dropped", "service_name", p.Labels["service_name"], "container", p.ContainerID, "err", err)
			continue
		}
		// A window that was split into several profiles has parts with equal labels and times: their ordinal within this
		// call tells equal parts from a replay of the call.
		key := strings.Join([]string{r.typ, r.labels, r.containerID, fmt.Sprint(r.start, r.end)}, "\x00")
		r.fingerprint = fingerprint(&r, seen[key])
		seen[key]++
		rows = append(rows, r)
	}
	return rows
}

// typeJSON is a sink.Type in the table: {"name":"process_cpu","samples":[["cpu","nanoseconds"]],"period":["cpu","nanoseconds"]}.
type typeJSON struct {
	Name    string      `json:"name"`
	Samples [][2]string `json:"samples"`
	Period  [2]string   `json:"period"`
}

func encodeRow(p *sink.Profile) (row, error) {
	switch {
	case p.Type.Name == "" || len(p.Type.Samples) == 0:
		return row{}, errors.New("it has no type")
	case p.Labels["service_name"] == "":
		return row{}, errors.New("it has no service_name")
	case len(p.Pprof) == 0:
		return row{}, errors.New("it has no pprof")
	case !p.End.After(p.Start):
		return row{}, fmt.Errorf("it ends at %v and begins at %v", p.End, p.Start)
	}
	t := typeJSON{Name: p.Type.Name, Period: [2]string{p.Type.Period.Type, p.Type.Period.Unit}}
	for _, v := range p.Type.Samples {
		t.Samples = append(t.Samples, [2]string{v.Type, v.Unit})
	}
	typ, err := json.Marshal(t)
	if err != nil {
		return row{}, err
	}
	labels, err := json.Marshal(p.Labels) // sorts the names: equal labels are equal bytes
	if err != nil {
		return row{}, err
	}
	return row{
		typ: string(typ), labels: string(labels), containerID: p.ContainerID,
		start: p.Start.UnixNano(), end: p.End.UnixNano(), boottime: int64(p.BootStart),
		total: p.Total, samples: int64(p.Samples), rawBytes: rawSize(p.Pprof), pprof: p.Pprof, tenant: p.Tenant,
	}, nil
}

func decodeType(s string) (sink.Type, error) {
	var t typeJSON
	if err := json.Unmarshal([]byte(s), &t); err != nil {
		return sink.Type{}, fmt.Errorf("profile type: %w", err)
	}
	if t.Name == "" || len(t.Samples) == 0 {
		return sink.Type{}, fmt.Errorf("profile type %.100q has no name or no sample type", s)
	}
	out := sink.Type{Name: t.Name, Period: sink.ValueType{Type: t.Period[0], Unit: t.Period[1]}}
	for _, v := range t.Samples {
		out.Samples = append(out.Samples, sink.ValueType{Type: v[0], Unit: v[1]})
	}
	return out, nil
}

func decodeLabels(s string) (sink.Labels, error) {
	var l sink.Labels
	if err := json.Unmarshal([]byte(s), &l); err != nil {
		return nil, fmt.Errorf("labels: %w", err)
	}
	return l, nil
}

// fingerprint identifies the n-th profile of its kind in a write. The container, the series, both clocks and the bytes go
// in: two generations of a container in one window differ in their bytes.
func fingerprint(r *row, n uint64) []byte {
	h := sha256.New()
	var num [8]byte
	for _, s := range []string{r.typ, r.labels, r.containerID} {
		binary.LittleEndian.PutUint64(num[:], uint64(len(s)))
		h.Write(num[:])
		h.Write([]byte(s))
	}
	for _, v := range []uint64{uint64(r.start), uint64(r.end), uint64(r.boottime), n} {
		binary.LittleEndian.PutUint64(num[:], v)
		h.Write(num[:])
	}
	h.Write(r.pprof)
	return h.Sum(nil)[:16]
}

// maxRaw bounds what one profile may unpack to: four times what a Pyroscope server takes.
const maxRaw = 16 << 20

// rawSize returns a pprof's size before compression from the gzip trailer, which is right for the single member that our
// builder writes and bounded for everything else: it only paces the uploads.
func rawSize(gz []byte) int64 {
	if !bytes.HasPrefix(gz, []byte{0x1f, 0x8b}) || len(gz) < 18 {
		return int64(len(gz))
	}
	return min(int64(binary.LittleEndian.Uint32(gz[len(gz)-4:])), maxRaw)
}

// checkpoint folds the write-ahead log into the file. Callers hold s.writer.
func (s *Store) checkpoint(ctx context.Context, mode string) error {
	db, release, err := s.use()
	if err != nil {
		return err
	}
	defer release()
	var busy, log, done int64
	if err := db.w.QueryRowContext(ctx, "PRAGMA wal_checkpoint("+mode+")").Scan(&busy, &log, &done); err != nil {
		return err
	}
	if busy != 0 {
		return fmt.Errorf("a reader still uses the write-ahead log (%d of %d pages folded in)", done, log)
	}
	return nil
}

// bytesOnDisk is what the store occupies: the file, its write-ahead log and the log's index.
func (s *Store) bytesOnDisk() (total, wal int64) {
	for _, suffix := range []string{"", "-wal", "-shm"} {
		info, err := os.Stat(s.cfg.Path + suffix)
		if err != nil {
			continue // the log is not there between a close and the next write
		}
		total += info.Size()
		if suffix == "-wal" {
			wal = info.Size()
		}
	}
	return total, wal
}

func unixNano(ns int64) time.Time { return time.Unix(0, ns) }
