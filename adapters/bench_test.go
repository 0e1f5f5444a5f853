//go:build unix

package adapters_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/rest"
	"github.com/hms-mkt/lockstep/adapters/soap"
	"github.com/hms-mkt/lockstep/adapters/webhook"
)

// asReceiver makes this test program the receiver of another one. The receiver is a
// separate process, so that its CPU time is not counted with the sender's.
const asReceiver = "LOCKSTEP_BENCH_RECEIVER"

func TestMain(m *testing.M) {
	if os.Getenv(asReceiver) == "" {
		os.Exit(m.Run())
	}
	if err := receive(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

const soapAnswer = `<S:Envelope xmlns:S="http://schemas.xmlsoap.org/soap/envelope/"><S:Body><c:Stored xmlns:c="urn:example:calendar"/></S:Body></S:Envelope>`

// receive takes everything at once, prints where, and ends with its input.
func receive() error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			if strings.HasPrefix(r.Header.Get("Content-Type"), "text/xml") {
				w.Header().Set("Content-Type", "text/xml; charset=utf-8")
				_, _ = io.WriteString(w, soapAnswer)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusCreated)
			_, _ = io.WriteString(w, "{}")
		}),
	}
	fmt.Println("http://" + listener.Addr().String())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		_ = server.Close()
	}()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// receiver starts a receiver and returns its URL.
func receiver(b *testing.B) string {
	b.Helper()
	program, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	command := exec.CommandContext(b.Context(), program)
	command.Env, command.Stderr = append(os.Environ(), asReceiver+"=1"), os.Stderr
	input, err := command.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	output, err := command.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := command.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = input.Close()
		_ = command.Wait() // b's context may have ended it
	})
	url, err := bufio.NewReader(output).ReadString('\n')
	if err != nil {
		b.Fatal("the receiver did not start: ", err)
	}
	return strings.TrimSpace(url)
}

const hearing = `{"n":1234,"hearingId":"H-1234","caseReference":"NY-2027-1234","scheduledAt":"2027-03-01T10:00:00-05:00","location":"3A","judge":"R. Alvarez","status":"scheduled"}`

func message() adapters.Message {
	return adapters.Message{
		ID: "0198f6a2-7d3e-7c1a-9b52-3f0e5d6c7a81", IdempotencyKey: "0198f6a2-7d3e-7c1a-9b52-3f0e5d6c7a81",
		Type: "scheduling:updated", Key: "H-1234", Version: new(int64(3)), Attempt: 1,
		OccurredAt: time.Date(2027, 3, 1, 14, 0, 0, 0, time.UTC), Body: []byte(hearing),
	}
}

// kinds makes an adapter of every kind that speaks HTTP.
func kinds(b *testing.B, url string) map[string]adapters.Adapter {
	b.Helper()
	made := func(a adapters.Adapter, err error) adapters.Adapter {
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = a.(io.Closer).Close() })
		return a
	}
	return map[string]adapters.Adapter{
		"rest": made(rest.New(rest.Config{URL: url + "/calendar/hearings"})),
		"webhook": made(webhook.New(webhook.Config{
			URL: url + "/hook", Secrets: []adapters.Secret{"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYqr"},
		})),
		"soap": made(soap.New(soap.Config{
			URL: url + "/CalendarService", Action: "NotifyHearing", Namespaces: map[string]string{"cal": "urn:example:calendar"},
			Body: `<cal:NotifyHearing><cal:reference>{fields.caseReference}</cal:reference><cal:start>{fields.scheduledAt}</cal:start>` +
				`<cal:room>{fields.location}</cal:room></cal:NotifyHearing>`,
		})),
	}
}

// BenchmarkDeliver sends messages to a receiver that answers at once, 32 at a time for
// two processors. "bare" is only net/http, with the same body as "rest".
func BenchmarkDeliver(b *testing.B) {
	url := receiver(b)
	b.Run("bare", func(b *testing.B) {
		client := &http.Client{Transport: &http.Transport{MaxIdleConns: 128, MaxIdleConnsPerHost: 128}}
		defer client.CloseIdleConnections()
		inParallel(b, func(ctx context.Context) error { return post(ctx, client, url) })
	})
	all := kinds(b, url)
	for _, name := range []string{"rest", "webhook", "soap"} {
		b.Run(name, func(b *testing.B) {
			msg := message()
			inParallel(b, func(ctx context.Context) error {
				_, err := all[name].Deliver(ctx, msg)
				return err
			})
		})
	}
}

func post(ctx context.Context, client *http.Client, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader([]byte(hearing)))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = answer.Body.Close() }()
	_, err = io.Copy(io.Discard, answer.Body)
	return err
}

// inParallel measures do, and the CPU time of this process for it.
func inParallel(b *testing.B, do func(context.Context) error) {
	b.Helper()
	b.ReportAllocs()
	b.SetParallelism(16)
	before := used(b)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := do(b.Context()); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(used(b)-before)/float64(b.N), "cpu-ns/op")
}

// used is the CPU time of this process so far.
func used(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// BenchmarkRender makes the request of one message and sends it nowhere.
func BenchmarkRender(b *testing.B) {
	for name, a := range kinds(b, "http://court.example.gov") {
		b.Run(name, func(b *testing.B) {
			msg := message()
			b.ReportAllocs()
			for b.Loop() {
				if _, err := a.(adapters.Previewer).Preview(msg); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
