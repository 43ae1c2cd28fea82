package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const tileHeight = 8

// checkRequest says what the log in the folder should prove.
type checkRequest struct {
	Origin  string
	Ed25519 string
	MLDSA44 string
	Records []struct {
		Index int64
		Proof tlog.RecordProof
	}
	Trees []struct {
		OldSize int64
		OldRoot tlog.Hash
		Proof   tlog.TreeProof
	}
}

// folderTiles reads tiles from where C2SP tlog-tiles puts them.
type folderTiles string

func (f folderTiles) Height() int                     { return tileHeight }
func (f folderTiles) SaveTiles([]tlog.Tile, [][]byte) {}

func (f folderTiles) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var all [][]byte
	for _, tile := range tiles {
		path := "tile/" + strings.TrimPrefix(tile.Path(), fmt.Sprintf("tile/%d/", tileHeight))
		data, err := os.ReadFile(filepath.Join(string(f), path))
		if err != nil {
			return nil, err
		}
		all = append(all, data)
	}
	return all, nil
}

func check(folder string) error {
	var request checkRequest
	if err := readRequest(&request); err != nil {
		return err
	}
	h, err := checkNote(folder, request)
	if err != nil {
		return err
	}
	reader := tlog.TileHashReader(tlog.Tree{N: h.size, Hash: h.root}, folderTiles(folder))
	leaves, err := checkEntries(folder, h, reader)
	if err != nil {
		return err
	}
	for _, record := range request.Records {
		if err := tlog.CheckRecord(record.Proof, h.size, h.root, record.Index, leaves[record.Index]); err != nil {
			return fmt.Errorf("record %d: %w", record.Index, err)
		}
		own, err := tlog.ProveRecord(h.size, record.Index, reader)
		if err != nil || fmt.Sprint(own) != fmt.Sprint(record.Proof) {
			return fmt.Errorf("record %d: another proof: %v", record.Index, err)
		}
	}
	for _, tree := range request.Trees {
		if err := tlog.CheckTree(tree.Proof, h.size, h.root, tree.OldSize, tree.OldRoot); err != nil {
			return fmt.Errorf("tree of %d: %w", tree.OldSize, err)
		}
	}
	fmt.Printf("size %d records %d trees %d\n", h.size, len(request.Records), len(request.Trees))
	return nil
}

// checkNote opens the checkpoint with both keys, each of which must have signed it.
func checkNote(folder string, request checkRequest) (head, error) {
	data, err := os.ReadFile(filepath.Join(folder, "checkpoint"))
	if err != nil {
		return head{}, err
	}
	ed25519, err := note.NewVerifier(request.Ed25519)
	if err != nil {
		return head{}, err
	}
	pq, err := newPQVerifier(request.MLDSA44)
	if err != nil {
		return head{}, err
	}
	opened, err := note.Open(data, note.VerifierList(ed25519, pq))
	if err != nil {
		return head{}, err
	}
	if len(opened.Sigs) != 2 || len(opened.UnverifiedSigs) != 0 {
		return head{}, fmt.Errorf("%d signatures verified, %d are unknown", len(opened.Sigs), len(opened.UnverifiedSigs))
	}
	h, err := parseHead(opened.Text)
	if err == nil && h.origin != request.Origin {
		err = fmt.Errorf("origin %q", h.origin)
	}
	return h, err
}

// checkEntries reads every entry bundle and compares it with the leaves that the root vouches for.
func checkEntries(folder string, h head, reader tlog.HashReader) ([]tlog.Hash, error) {
	var leaves []tlog.Hash
	for bundle := int64(0); bundle<<tileHeight < h.size; bundle++ {
		width := min(h.size-bundle<<tileHeight, 1<<tileHeight)
		tile := tlog.Tile{H: tileHeight, L: -1, N: bundle, W: int(width)}
		path := strings.Replace(tile.Path(), fmt.Sprintf("tile/%d/data/", tileHeight), "tile/entries/", 1)
		data, err := os.ReadFile(filepath.Join(folder, path))
		if err != nil {
			return nil, err
		}
		for entries := bytes.NewBuffer(data); entries.Len() > 0; {
			size := int(binary.BigEndian.Uint16(entries.Next(2)))
			if entries.Len() < size {
				return nil, fmt.Errorf("%s ends early", path)
			}
			leaves = append(leaves, tlog.RecordHash(entries.Next(size)))
		}
	}
	if int64(len(leaves)) != h.size {
		return nil, fmt.Errorf("%d entries in a tree of %d", len(leaves), h.size)
	}
	for index, leaf := range leaves {
		hashes, err := reader.ReadHashes([]int64{tlog.StoredHashIndex(0, int64(index))})
		if err != nil || hashes[0] != leaf {
			return nil, fmt.Errorf("entry %d is not its leaf: %v", index, err)
		}
	}
	return leaves, nil
}
