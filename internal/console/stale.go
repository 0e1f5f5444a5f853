package console

import (
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/hms-mkt/lockstep/internal/page"
)

// mostKept bounds the pages of which the last good answer is kept.
const mostKept = 64

// kept has the last good answers. While the database does not answer, a reader gets what was
// true a moment ago instead of an error.
type kept struct {
	mu    sync.Mutex
	pages map[string]keptPage
}

type keptPage struct {
	view page.View
	at   time.Time
}

func (k *kept) put(key string, v page.View) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.pages == nil {
		k.pages = map[string]keptPage{}
	}
	k.pages[key] = keptPage{v, time.Now()}
	for len(k.pages) > mostKept {
		oldest, found := "", keptPage{}
		for key, p := range k.pages {
			if oldest == "" || p.at.Before(found.at) {
				oldest, found = key, p
			}
		}
		delete(k.pages, oldest)
	}
}

func (k *kept) get(key string) (keptPage, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	p, ok := k.pages[key]
	return p, ok
}

// keptAs is under which an answer is kept: what a person sees depends on what she may do.
func (v visitor) keptAs(r *http.Request) string {
	if v.May == Operate {
		return "operate " + r.URL.RequestURI()
	}
	return "read " + r.URL.RequestURI()
}

// staleNote says how old an answer is, and why there is no newer one.
func staleNote(err error, at time.Time) string {
	why := databaseRefusal(err).says
	if i := strings.Index(why, ". "); i > 0 {
		why = why[:i+1]
	}
	return "This is as of " + lasting(time.Since(at)) + " ago. " + why
}
