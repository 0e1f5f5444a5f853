package console

import (
	"context"
	"crypto/rand"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/internal/operate"
	"github.com/hms-mkt/lockstep/internal/page"
)

const (
	mostRunning = 2  // actions at a time, fewer than Config.Operate has connections
	mostJobs    = 50 // actions whose end this process remembers
)

// job is an action that runs in this process. If the process ends, the deliveries that were
// changed are in the log, and the others are as they were.
type job struct {
	ID         string
	By, Reason string
	Action     operate.Action
	Words      string // what selects the deliveries
	Again      string // address of the confirmation
	Seen       int64  // how many deliveries the person saw
	Began      time.Time

	stop   context.CancelCauseFunc
	ended  chan struct{}
	mu     sync.Mutex
	done   int64 // changed until now
	result operate.Result
	err    error
	at     time.Time // when it ended
}

// jobState is how far a job is.
type jobState struct {
	Running bool
	Done    int64     // deliveries that it has changed
	Total   int64     // deliveries of the set
	Err     error     // why it did not change all of them
	At      time.Time // when it ended
}

// Missed are the deliveries that others changed meanwhile.
func (s jobState) Missed() int64 { return s.Total - s.Done }

// State returns how far the job is.
func (j *job) State() jobState {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.at.IsZero() {
		return jobState{Running: true, Done: j.done, Total: j.Seen}
	}
	return jobState{Done: j.result.Done, Total: j.result.Set.Count, Err: j.err, At: j.at}
}

// URL returns the address of the job's page.
func (j *job) URL() string { return "/action/job/" + j.ID }

// wait waits for the end of the job, for a limited time, and reports whether it has ended.
func (j *job) wait(ctx context.Context, most time.Duration) bool {
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-j.ended:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

// jobs are the actions of this process.
type jobs struct {
	answerWithin time.Duration // an action that takes longer is shown while it runs

	mu     sync.Mutex
	all    []*job // the oldest first
	closed bool
	wg     sync.WaitGroup
}

// errClosing ends the requests and stops the jobs of a process that ends.
var errClosing = errors.New("this program is being stopped")

// start begins an action. It completes the fields of j that say who does what.
func (s *jobs) start(j *job, db operate.Beginner, order operate.Order) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.running()) >= mostRunning {
		says := "Several actions are running, and this one was not begun. Wait until one of them has ended, and send the form again."
		if s.closed {
			says = "This program is being stopped, so the action was not begun."
		}
		return refusal{http.StatusServiceUnavailable, "Not now", says}
	}
	if len(s.all) >= mostJobs {
		i := slices.IndexFunc(s.all, func(j *job) bool { return !j.State().Running })
		s.all = slices.Delete(s.all, i, i+1) // fewer than mostRunning run, so one has ended
	}
	ctx, stop := context.WithCancelCause(context.Background())
	j.ID, j.Began, j.stop, j.ended = rand.Text(), time.Now(), stop, make(chan struct{})
	order.Each = func(page []operate.Delivery) error {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.done += int64(len(page))
		return nil
	}
	s.all = append(s.all, j)
	s.wg.Go(func() {
		defer stop(nil)
		result, err := operate.Apply(ctx, db, operate.Actor{Name: j.By, Reason: j.Reason}, order)
		j.mu.Lock()
		j.result, j.err, j.at = result, err, time.Now()
		j.mu.Unlock()
		close(j.ended)
	})
	return nil
}

// now returns the actions that run now.
func (s *jobs) now() []jobData {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running()
}

// find returns a job, nil if this process does not know it.
func (s *jobs) find(id string) *job {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.IndexFunc(s.all, func(j *job) bool { return j.ID == id }); i >= 0 {
		return s.all[i]
	}
	return nil
}

// running returns the actions that run now. The caller has locked s.
func (s *jobs) running() (now []jobData) {
	for _, j := range s.all {
		if state := j.State(); state.Running {
			now = append(now, jobData{job: j, jobState: state})
		}
	}
	return now
}

// close stops all jobs after the page that they have begun, and waits for them.
func (s *jobs) close() {
	s.mu.Lock()
	s.closed = true
	for _, j := range s.all {
		j.stop(errClosing)
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// Close ends the requests that are being answered, and stops the actions that are running,
// each after the page that it has begun. It waits for the actions. What an action has not
// changed by then stays as it is.
func (c *Console) Close() {
	c.end(errClosing)
	c.jobs.close()
}

// jobData is the page of a job.
type jobData struct {
	*job
	jobState
	Stopped bool
	Said    string // the error in words
	Changes string // address of what this person did
}

// showJob answers with the progress or the end of an action.
func (c *Console) showJob(w http.ResponseWriter, r *http.Request, v visitor) error {
	changes := with("/changes", "by", v.Name)
	j := c.jobs.find(r.PathValue("id"))
	if j == nil {
		c.write(w, r, http.StatusNotFound, page.View{Page: "nojob", Title: "This action is not known here", Data: changes})
		return nil
	}
	d := jobData{job: j, jobState: j.State(), Changes: with("/changes", "by", j.By)}
	if d.Err != nil {
		_, d.Stopped = errors.AsType[*operate.StoppedError](d.Err)
		d.Said = said(d.Err)
	}
	title := "Done"
	switch {
	case d.Running:
		title = "In progress"
	case d.Stopped:
		title = "Stopped"
	case d.Err != nil:
		title = "Not done"
	}
	c.write(w, r, http.StatusOK, page.View{Page: "job", Title: title, Data: d})
	return nil
}

// said is the error of an action as a sentence.
func said(err error) string {
	text := err.Error()
	if refused, ok := errors.AsType[*pgconn.PgError](err); ok {
		text = strings.Replace(text, refused.Error(), refused.Message, 1)
	}
	text = adapters.Clean(text, 1000)
	return strings.ToUpper(text[:1]) + text[1:]
}

// errStopped is the cause of the end of a job that a person has stopped.
var errStopped = errors.New("a person stopped it")

// stopJob stops an action after the page that it has begun.
func (c *Console) stopJob(w http.ResponseWriter, r *http.Request, v visitor) error {
	if j := c.jobs.find(r.PathValue("id")); j != nil {
		j.stop(errStopped)
		j.wait(r.Context(), c.jobs.answerWithin)
		http.Redirect(w, r, j.URL(), http.StatusSeeOther)
		return nil
	}
	return c.showJob(w, r, v)
}
