package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// sinkChild is a receiver that accepts everything after a delay.
func sinkChild(ctx context.Context, c childConfig, r *reporter) error {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
			_, _ = io.Copy(io.Discard, request.Body) // a client may go away
			if c.Delay > 0 {
				_ = waitFor(request.Context(), c.Delay)
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusCreated)
			_, _ = io.WriteString(w, "{}")
			r.done()
		}),
	}
	first := r.now()
	first.URL = "http://" + listener.Addr().String()
	if err := r.print(first); err != nil {
		return err
	}
	serving := make(chan error, 1)
	go func() { serving <- server.Serve(listener) }()
	<-ctx.Done()
	_ = server.Close()
	if err := <-serving; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// clientChild sends the requests of a relay without a relay. This measures the limit of HTTP.
func clientChild(ctx context.Context, c childConfig, r *reporter) error {
	client := &http.Client{Transport: &http.Transport{MaxIdleConns: 128, MaxIdleConnsPerHost: 128}}
	var next atomic.Int64
	var failed error
	var once sync.Once
	var senders sync.WaitGroup
	for range workers {
		senders.Go(func() {
			for {
				n := next.Add(1)
				if n > int64(c.Requests) {
					return
				}
				if err := post(ctx, client, c.Sink, n); err != nil {
					once.Do(func() { failed = err })
					return
				}
				r.done()
			}
		})
	}
	senders.Wait()
	if failed == nil {
		<-ctx.Done()
	}
	return failed
}

func post(ctx context.Context, client *http.Client, url string, n int64) error {
	body := fmt.Appendf(nil, `{"n": %d, "hearingId": "H-%d", "caseReference": "NY-2027-%d", "scheduledAt": "2027-03-01T10:00:00-05:00", "location": "3A", "judge": "R. Alvarez", "status": "scheduled"}`, n, n, n)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		return err
	}
	if answer.StatusCode != http.StatusCreated {
		return fmt.Errorf("the sink says %s", answer.Status)
	}
	return nil
}
