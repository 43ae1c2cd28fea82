package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"

	"filippo.io/mldsa"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// makeRequest says which log to make: its entry i is "entry i".
type makeRequest struct {
	Origin   string
	Size     int64
	Time     uint64
	Indices  []int64
	OldSizes []int64
	Seed     uint64
}

type recordProof struct {
	Index int64
	Leaf  tlog.Hash
	Proof tlog.RecordProof
}

type treeProof struct {
	OldSize int64
	OldRoot tlog.Hash
	Proof   tlog.TreeProof
}

type made struct {
	Note    string
	Ed25519 string
	MLDSA44 string
	Records []recordProof
	Trees   []treeProof
}

func produce() error {
	var request makeRequest
	if err := readRequest(&request); err != nil {
		return err
	}
	reader, leaves, err := grow(request.Size)
	if err != nil {
		return err
	}
	root, err := tlog.TreeHash(request.Size, reader)
	if err != nil {
		return err
	}
	var result made
	if err := result.sign(request, head{request.Origin, request.Size, root}); err != nil {
		return err
	}
	for _, index := range request.Indices {
		proof, err := tlog.ProveRecord(request.Size, index, reader)
		if err != nil {
			return err
		}
		result.Records = append(result.Records, recordProof{index, leaves[index], proof})
	}
	for _, size := range request.OldSizes {
		oldRoot, err := tlog.TreeHash(size, reader)
		if err != nil {
			return err
		}
		proof, err := tlog.ProveTree(request.Size, size, reader)
		if err != nil {
			return err
		}
		result.Trees = append(result.Trees, treeProof{size, oldRoot, proof})
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

func grow(size int64) (tlog.HashReader, []tlog.Hash, error) {
	var stored, leaves []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		var found []tlog.Hash
		for _, index := range indexes {
			found = append(found, stored[index])
		}
		return found, nil
	})
	for index := range size {
		entry := fmt.Appendf(nil, "entry %d", index)
		hashes, err := tlog.StoredHashes(index, entry, reader)
		if err != nil {
			return nil, nil, err
		}
		stored = append(stored, hashes...)
		leaves = append(leaves, tlog.RecordHash(entry))
	}
	return reader, leaves, nil
}

// seededReader gives the same keys for the same seed; they sign nothing but this test's log.
type seededReader struct{ *rand.ChaCha8 }

func (m *made) sign(request makeRequest, h head) error {
	var seed [32]byte
	seed[0] = byte(request.Seed)
	random := seededReader{rand.NewChaCha8(seed)}
	skey, vkey, err := note.GenerateKey(random, request.Origin)
	if err != nil {
		return err
	}
	ed25519, err := note.NewSigner(skey)
	if err != nil {
		return err
	}
	key, err := mldsa.NewPrivateKey(mldsa.MLDSA44(), seed[:])
	if err != nil {
		return err
	}
	pq := &pqSigner{request.Origin, request.Time, key}
	data, err := note.Sign(&note.Note{Text: h.text()}, ed25519, pq)
	m.Note, m.Ed25519, m.MLDSA44 = string(data), vkey, pq.vkey()
	return err
}
