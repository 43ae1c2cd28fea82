package main

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"filippo.io/mldsa"
	"golang.org/x/mod/sumdb/tlog"
)

// typeMLDSA44 is the signature type of C2SP tlog-cosignature.
const typeMLDSA44 = 0x06

// head is a checkpoint's text as C2SP tlog-checkpoint writes it.
type head struct {
	origin string
	size   int64
	root   tlog.Hash
}

func parseHead(text string) (head, error) {
	lines := strings.Split(text, "\n")
	if len(lines) != 4 || lines[3] != "" {
		return head{}, fmt.Errorf("checkpoint has %d lines", len(lines))
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		return head{}, err
	}
	root, err := tlog.ParseHash(lines[2])
	return head{lines[0], size, root}, err
}

func (h head) text() string {
	return fmt.Sprintf("%s\n%d\n%s\n", h.origin, h.size, h.root)
}

// cosigned builds the cosigned_message of C2SP tlog-cosignature.
func cosigned(name string, time uint64, h head) []byte {
	message := []byte("subtree/v1\n\x00")
	message = append(message, byte(len(name)))
	message = append(message, name...)
	message = binary.BigEndian.AppendUint64(message, time)
	message = append(message, byte(len(h.origin)))
	message = append(message, h.origin...)
	message = binary.BigEndian.AppendUint64(message, 0)
	message = binary.BigEndian.AppendUint64(message, uint64(h.size))
	return append(message, h.root[:]...)
}

func keyHash(name string, material []byte) uint32 {
	sum := sha256.Sum256(append([]byte(name+"\n"), material...))
	return binary.BigEndian.Uint32(sum[:])
}

// pqVerifier is a note.Verifier of ML-DSA-44 cosignatures.
type pqVerifier struct {
	name string
	hash uint32
	key  *mldsa.PublicKey
}

func newPQVerifier(vkey string) (*pqVerifier, error) {
	parts := strings.SplitN(vkey, "+", 3)
	if len(parts) != 3 {
		return nil, fmt.Errorf("malformed verifier key")
	}
	material, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil {
		return nil, err
	}
	if len(material) == 0 || material[0] != typeMLDSA44 {
		return nil, fmt.Errorf("not an ML-DSA-44 verifier key")
	}
	if fmt.Sprintf("%08x", keyHash(parts[0], material)) != parts[1] {
		return nil, fmt.Errorf("wrong key id")
	}
	key, err := mldsa.NewPublicKey(mldsa.MLDSA44(), material[1:])
	if err != nil {
		return nil, err
	}
	return &pqVerifier{parts[0], keyHash(parts[0], material), key}, nil
}

func (v *pqVerifier) Name() string    { return v.name }
func (v *pqVerifier) KeyHash() uint32 { return v.hash }

func (v *pqVerifier) Verify(text, signature []byte) bool {
	h, err := parseHead(string(text))
	if err != nil || len(signature) != 8+v.key.Parameters().SignatureSize() {
		return false
	}
	time := binary.BigEndian.Uint64(signature)
	return mldsa.Verify(v.key, cosigned(v.name, time, h), signature[8:], nil) == nil
}

// pqSigner is a note.Signer of ML-DSA-44 cosignatures with a fixed time.
type pqSigner struct {
	name string
	time uint64
	key  *mldsa.PrivateKey
}

func (s *pqSigner) material() []byte {
	return append([]byte{typeMLDSA44}, s.key.PublicKey().Bytes()...)
}

func (s *pqSigner) Name() string    { return s.name }
func (s *pqSigner) KeyHash() uint32 { return keyHash(s.name, s.material()) }

func (s *pqSigner) vkey() string {
	return fmt.Sprintf("%s+%08x+%s", s.name, s.KeyHash(), base64.StdEncoding.EncodeToString(s.material()))
}

func (s *pqSigner) Sign(text []byte) ([]byte, error) {
	h, err := parseHead(string(text))
	if err != nil {
		return nil, err
	}
	signature, err := s.key.Sign(nil, cosigned(s.name, s.time, h), nil)
	return append(binary.BigEndian.AppendUint64(nil, s.time), signature...), err
}
