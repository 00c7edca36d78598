package store

import (
	"strings"
	"testing"
)

// The statements that run all day must not walk through tables: a day of 20 containers has 172,800 rows before it is merged.
func TestFrequentStatementsUseTheirIndexes(t *testing.T) {
	s := open(t, newClock(), withSinks("a"))
	for _, q := range []struct {
		text string
		args int
	}{{firstTenant, 1}, {nextTenant, 2}, {dueOfTenant, 5}, {claimDelivery, 2}, {countWaiting, 1}, {findSlots, 3}, {slotRows, 6}, {selectRange, 2}} {
		rows, err := s.db.r.Query("EXPLAIN QUERY PLAN "+q.text, make([]any, q.args)...)
		if err != nil {
			t.Fatalf("%s: %v", q.text, err)
		}
		for rows.Next() {
			var id, parent, unused int
			var detail string
			if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(detail, "SCAN") && !strings.Contains(detail, "json_each") {
				t.Errorf("%s: %s", q.text, detail)
			}
		}
		rows.Close()
	}
}
