package exchange

import (
	"context"
	"errors"
	"net"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/hms-mkt/lockstep/adapters"
)

// A shortage of this machine is distinguished from a failure of the receiver.
func TestAConnectionThatThisMachineCannotMakeIsLocal(t *testing.T) {
	dialing := func(call string, errno syscall.Errno) error {
		return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError(call, errno)}
	}
	lookup := func(text string) error {
		return &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: text, Name: "court.example"}}
	}
	for name, tc := range map[string]struct {
		err  error
		want adapters.Class
	}{
		"no descriptor":             {dialing("socket", syscall.EMFILE), adapters.ClassLocal},
		"none in the whole system":  {dialing("socket", syscall.ENFILE), adapters.ClassLocal},
		"no local port":             {dialing("connect", syscall.EADDRNOTAVAIL), adapters.ClassLocal},
		"no buffer":                 {dialing("connect", syscall.ENOBUFS), adapters.ClassLocal},
		"no memory":                 {dialing("socket", syscall.ENOMEM), adapters.ClassLocal},
		"no descriptor for a query": {lookup("dial udp 192.0.2.53:53: socket: " + syscall.EMFILE.Error()), adapters.ClassLocal},
		"no such host":              {lookup("no such host"), adapters.ClassTransient},
		"refused":                   {dialing("connect", syscall.ECONNREFUSED), adapters.ClassTransient},
		"unreachable":               {dialing("connect", syscall.EHOSTUNREACH), adapters.ClassTransient},
		"something else":            {errors.New("something else"), adapters.ClassTransient},
	} {
		t.Run(name, func(t *testing.T) {
			c := newClient(t, adapters.TLS{})
			c.transport.DialContext = func(context.Context, string, string) (net.Conn, error) { return nil, tc.err }
			_, err := post(t.Context(), c, &url.URL{Scheme: "http", Host: "court.example"})
			if class := adapters.ClassOf(err); class != tc.want || !strings.Contains(err.Error(), "nothing was sent") {
				t.Errorf("class %s, want %s: %v", class, tc.want, err)
			}
			if told := strings.Contains(err.Error(), "this machine has no file descriptor, local port or memory left"); told != (tc.want == adapters.ClassLocal) {
				t.Errorf("the error says %v", err)
			}
		})
	}
}
