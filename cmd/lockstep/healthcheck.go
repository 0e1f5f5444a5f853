package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hms-mkt/lockstep/adapters"
)

func (a *app) healthcheckCommand() *cobra.Command {
	var url, own string
	c := &cobra.Command{
		Use:   "healthcheck",
		Short: "Ask a running relay whether it is ready, for probes of containers",
		Long: `Ask a running relay whether it is ready. It is ready if the database accepts
writes and the relay has polled each sync recently. The command asks /readyz at
the listen address of the configuration, or --url. It exits with 1 if the relay
is not ready or does not answer.`,
		Example: `  lockstep healthcheck
  lockstep healthcheck --url http://127.0.0.1:9464/livez`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if url == "" {
				f, err := a.load()
				if err != nil {
					return err
				}
				if f.Listen == "" {
					return usagef("listen is empty, so a relay of this configuration has no health endpoint: give --url, or write an address into listen")
				}
				url = "http://" + local(f.Listen) + "/readyz"
				if f.ListenTLS.Enabled() {
					url = "https" + strings.TrimPrefix(url, "http")
					own = f.ListenTLS.CertFile
				}
			}
			return a.probe(cmd.Context(), url, own)
		},
	}
	c.Flags().StringVar(&url, "url", "", "`URL` to ask instead of /readyz at the listen address")
	return c
}

// local returns the address by which this machine reaches a listener on addr.
func local(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
		if ip != nil && ip.To4() == nil {
			host = "::1"
		}
	}
	return net.JoinHostPort(host, port)
}

// probe asks url. own is a file with the certificate that an HTTPS server must have, whatever
// its name; without it, the certificate must be valid for the name in url.
func (a *app) probe(ctx context.Context, url, own string) error {
	ctx, cancel := answerWithin(ctx, connectTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return usagef("--url: %w", err)
	}
	// This is not the default transport, because a proxy from the environment cannot
	// reach this machine's ports.
	transport := &http.Transport{DisableKeepAlives: true}
	if own != "" {
		transport.TLSClientConfig = onlyCertificate(own)
	}
	client := &http.Client{Transport: transport, Timeout: connectTimeout + time.Second}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("no relay answers: %w; is it running, and is this its listen address?", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1024))
	if err != nil {
		return fmt.Errorf("%s: %w", url, err)
	}
	text := adapters.Clean(string(bytes.TrimSpace(body)), 0)
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", url, resp.Status, text)
	}
	_, err = fmt.Fprintln(a.stdout, text)
	return err
}
