package webhook

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
)

// The forms of a secret (Standard Webhooks 1.0.0, "Signature scheme").
const (
	hmacPrefix   = "whsec_"
	secretPrefix = "whsk_" // ed25519
	publicPrefix = "whpk_" // ed25519, the receiver's key

	minHMACKey = 24
	maxHMACKey = 64
)

// signer signs with one secret and returns the signature for the header. The key is
// inside a function, so that fmt cannot print it.
type signer func(content []byte) string

// parseSecrets returns a signer for each secret. Its errors show no secret.
func parseSecrets(secrets []adapters.Secret) ([]signer, error) {
	if len(secrets) == 0 {
		return nil, errors.New("secrets: write at least one, whsec_… (HMAC-SHA256) or whsk_… (ed25519)")
	}
	var errs []error
	signers := make([]signer, len(secrets))
	for i, secret := range secrets {
		var err error
		if signers[i], err = parseSecret(secret.Reveal()); err != nil {
			errs = append(errs, fmt.Errorf("secrets[%d]: %w", i, err))
		} else if first := slices.Index(secrets, secret); first < i {
			errs = append(errs, fmt.Errorf("secrets[%d]: is the same as secrets[%d]", i, first))
		}
	}
	return signers, errors.Join(errs...)
}

func parseSecret(secret string) (signer, error) {
	switch {
	case secret == "":
		return nil, errors.New("is empty: write a secret, or remove the entry")
	case strings.HasPrefix(secret, hmacPrefix):
		key, err := decode(secret, hmacPrefix)
		if err == nil && (len(key) < minHMACKey || len(key) > maxHMACKey) {
			err = fmt.Errorf("has %d bytes after %s, not %d to %d", len(key), hmacPrefix, minHMACKey, maxHMACKey)
		}
		return symmetric(key), err
	case strings.HasPrefix(secret, secretPrefix):
		key, err := decode(secret, secretPrefix)
		if err != nil {
			return nil, err
		}
		return asymmetric(key)
	case strings.HasPrefix(secret, publicPrefix):
		return nil, errors.New("is a public key (whpk_), with which receivers verify: write the private key (whsk_)")
	default:
		return nil, errors.New("must begin with whsec_ (HMAC-SHA256) or whsk_ (ed25519)")
	}
}

func decode(secret, prefix string) ([]byte, error) {
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, prefix))
	if err != nil || strings.ContainsAny(secret, "\r\n") { // the decoder ignores these
		return nil, fmt.Errorf("is not standard base64 with padding after %s", prefix)
	}
	return key, nil
}

func symmetric(key []byte) signer {
	return func(content []byte) string {
		h := hmac.New(sha256.New, key)
		h.Write(content)
		return "v1," + base64.StdEncoding.EncodeToString(h.Sum(nil))
	}
}

// asymmetric takes the seed (RFC 8032, 5.1.5), or the seed followed by the public key,
// as libsodium and crypto/ed25519 store it.
func asymmetric(key []byte) (signer, error) {
	if len(key) != ed25519.SeedSize && len(key) != ed25519.PrivateKeySize {
		return nil, fmt.Errorf("has %d bytes after %s, not %d (an ed25519 seed) or %d (with the public key)",
			len(key), secretPrefix, ed25519.SeedSize, ed25519.PrivateKeySize)
	}
	private := ed25519.NewKeyFromSeed(key[:ed25519.SeedSize])
	if !bytes.HasPrefix(private, key) {
		return nil, errors.New("has a public key that does not belong to its private key")
	}
	return func(content []byte) string {
		return "v1a," + base64.StdEncoding.EncodeToString(ed25519.Sign(private, content))
	}, nil
}

// content is the signed text of a request.
func content(id string, at time.Time, body []byte) []byte {
	return append(fmt.Appendf(nil, "%s.%s.", id, timestamp(at)), body...)
}

func timestamp(at time.Time) string { return strconv.FormatInt(at.Unix(), 10) }

// checkID refuses an id that could be read in two ways. Full stops separate the parts
// of the signed content, and HTTP removes white space at the ends of a header.
func checkID(id string) error {
	for _, b := range []byte(id) {
		switch {
		case b == '.':
			return errors.New("has a full stop, which would make its signature ambiguous")
		case b <= ' ' || b > '~':
			return errors.New("has a byte that is not printable ASCII")
		}
	}
	return nil
}
