// Shop is a Go service for the demo: it answers made-up orders at a steady pace, which costs it about half a CPU in
// decoding JSON, sorting, matching and compressing.
package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
)

type item struct {
	Name  string   `json:"name"`
	Price int      `json:"price"`
	Tags  []string `json:"tags"`
}

type order struct {
	Customer string `json:"customer"`
	Items    []item `json:"items"`
}

var sale = regexp.MustCompile(`^(summer|winter)-[a-z]+-(\d+)$`)

// request is an order as a client would send it.
func request(n int) []byte {
	o := order{Customer: fmt.Sprintf("customer-%d", n%97)}
	for i := range 60 {
		o.Items = append(o.Items, item{
			Name:  fmt.Sprintf("item-%d", (i*7919+n)%1000),
			Price: (i*104729 + n) % 5000,
			Tags:  []string{"summer-shoes-" + fmt.Sprint(i), "new", "winter-coat-" + fmt.Sprint(n)},
		})
	}
	body, err := json.Marshal(o)
	if err != nil {
		panic(err) // plain data always marshals
	}
	return body
}

//go:noinline
func decode(body []byte) (o order, err error) {
	err = json.Unmarshal(body, &o)
	return o, err
}

//go:noinline
func discount(o order) int {
	sum := 0
	for _, it := range o.Items {
		for _, tag := range it.Tags {
			if sale.MatchString(tag) {
				sum += it.Price / 10
			}
		}
	}
	return sum
}

//go:noinline
func rank(o order) {
	slices.SortFunc(o.Items, func(a, b item) int {
		if a.Price != b.Price {
			return a.Price - b.Price
		}
		return strings.Compare(a.Name, b.Name)
	})
}

//go:noinline
func respond(o order, discount int, out *bytes.Buffer) error {
	out.Reset()
	z := gzip.NewWriter(out)
	if err := json.NewEncoder(z).Encode(map[string]any{"order": o, "discount": discount}); err != nil {
		return err
	}
	return z.Close()
}

func handle(body []byte, out *bytes.Buffer) (uint32, error) {
	o, err := decode(body)
	if err != nil {
		return 0, err
	}
	rank(o)
	if err := respond(o, discount(o), out); err != nil {
		return 0, err
	}
	return crc32.ChecksumIEEE(out.Bytes()), nil
}

func main() {
	var out bytes.Buffer
	var sum uint32
	n := 0
	for range time.Tick(10 * time.Millisecond) {
		for range 8 {
			n++
			c, err := handle(request(n), &out)
			if err != nil {
				fmt.Fprintln(os.Stderr, "shop:", err)
				os.Exit(1)
			}
			sum ^= c
		}
	}
}
