// Command bench_tessera adds entries to a Tessera log on a POSIX file system, for bench_log.py to compare with.
//
//	bench_tessera key NAME                                      prints a signing key
//	bench_tessera add FOLDER KEY SECONDS BYTES OUTSTANDING RATE BATCH  prints counts and times as JSON
//
// OUTSTANDING adders each wait for their entry to be durable and integrated before the next. RATE above 0 bounds the
// entries per second of them all, and then each waits for a checkpoint over its entry. BATCH: entries, at most.
package main

import (
	"context"
	crand "crypto/rand"
	"encoding/json"
	"fmt"
	"log"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"
)

// checkpointInterval is the shortest that the driver takes.
const checkpointInterval = 100 * time.Millisecond

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

type result struct {
	Adds         int     `json:"adds"`
	Seconds      float64 `json:"seconds"`
	PublishedS   float64 `json:"published_seconds"`
	IntegrateP50 float64 `json:"p50_ms"`
	IntegrateP99 float64 `json:"p99_ms"`
}

type adder struct {
	log      *tessera.Appender
	await    *tessera.PublicationAwaiter
	size     int
	deadline time.Time
	every    time.Duration
}

// run adds entries until the deadline; it returns how long each took, and the last one's future.
func (a adder) run(ctx context.Context) ([]time.Duration, tessera.IndexFuture) {
	var took []time.Duration
	var last tessera.IndexFuture
	next := time.Now()
	if a.every > 0 { // Not all at once.
		next = next.Add(rand.N(a.every))
		time.Sleep(time.Until(next))
	}
	for time.Now().Before(a.deadline) {
		data := make([]byte, a.size)
		crand.Read(data)
		began := time.Now()
		last = a.log.Add(ctx, tessera.NewEntry(data))
		if a.every == 0 {
			must(last())
		} else {
			_, _, err := a.await.Await(ctx, last)
			must(struct{}{}, err)
		}
		took = append(took, time.Since(began))
		if a.every > 0 {
			next = next.Add(a.every)
			time.Sleep(time.Until(next))
		}
	}
	return took, last
}

func add(folder, key string, seconds float64, size, outstanding int, rate float64, batch uint) result {
	ctx := context.Background()
	driver := must(posix.New(ctx, posix.Config{Path: folder}))
	options := tessera.NewAppendOptions().WithCheckpointSigner(must(note.NewSigner(key))).
		WithBatching(batch, tessera.DefaultBatchMaxAge).WithCheckpointInterval(checkpointInterval)
	appender, _, reader, err := tessera.NewAppender(ctx, driver, options)
	must(struct{}{}, err)
	await := tessera.NewPublicationAwaiter(ctx, reader.ReadCheckpoint, 10*time.Millisecond)
	began := time.Now()
	each := adder{appender, await, size, began.Add(time.Duration(seconds * 1e9)), 0}
	if rate > 0 {
		each.every = time.Duration(float64(outstanding) / rate * 1e9)
	}
	var mutex sync.Mutex
	var group sync.WaitGroup
	var took []time.Duration
	var last []tessera.IndexFuture
	for range outstanding {
		group.Go(func() {
			mine, future := each.run(ctx)
			mutex.Lock()
			defer mutex.Unlock()
			took = append(took, mine...)
			if future != nil {
				last = append(last, future)
			}
		})
	}
	group.Wait()
	done := time.Since(began)
	for _, future := range last {
		_, _, err := await.Await(ctx, future)
		must(struct{}{}, err)
	}
	slices.Sort(took)
	at := func(share float64) float64 { return took[int(share*float64(len(took)-1))].Seconds() * 1000 }
	return result{len(took), done.Seconds(), time.Since(began).Seconds(), at(0.5), at(0.99)}
}

func main() {
	switch {
	case len(os.Args) == 3 && os.Args[1] == "key":
		secret, _, err := note.GenerateKey(crand.Reader, os.Args[2])
		must(struct{}{}, err)
		fmt.Println(secret)
	case len(os.Args) == 9 && os.Args[1] == "add":
		integer := func(at int) int { return must(strconv.Atoi(os.Args[at])) }
		decimal := func(at int) float64 { return must(strconv.ParseFloat(os.Args[at], 64)) }
		made := add(os.Args[2], os.Args[3], decimal(4), integer(5), integer(6), decimal(7), uint(integer(8)))
		must(struct{}{}, json.NewEncoder(os.Stdout).Encode(made))
	default:
		log.Fatal("usage: see the beginning of main.go")
	}
}
