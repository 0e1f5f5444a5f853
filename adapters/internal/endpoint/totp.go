package endpoint

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"
)

// totpStep is how long a one-time password is valid (RFC 6238, 5.2).
const totpStep = 30 * time.Second

// totpKey reads the secret of one-time passwords: base32 in any case, with or without
// padding. Its error does not repeat the secret.
func totpKey(secret string) ([]byte, error) {
	text := strings.TrimRight(strings.ToUpper(strings.ReplaceAll(secret, " ", "")), "=")
	key, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(text)
	if err != nil || len(key) == 0 {
		return nil, errors.New("is not base32 (A-Z and 2-7): give the secret of the one-time passwords")
	}
	return key, nil
}

// totp returns the one-time password of a time: six digits, HMAC-SHA1 (RFC 6238, and
// RFC 4226, 5.3).
func totp(key []byte, at time.Time) string {
	mac := hmac.New(sha1.New, key)
	_ = binary.Write(mac, binary.BigEndian, at.Unix()/int64(totpStep.Seconds())) // a hash never fails
	sum := mac.Sum(nil)
	offset := sum[len(sum)-1] & 0xf
	return fmt.Sprintf("%06d", binary.BigEndian.Uint32(sum[offset:])&0x7fffffff%1_000_000)
}
