package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// grace is what a test that was told to end has for it: Ginkgo gives 30 s to
// the test and as much to what cleans up after it.
const grace = 3 * time.Minute

// longTest is from when on a test is started before others, so that it does
// not run alone at the end.
const longTest = 45.0

// suite runs upstream's suite in processes of its own.
type suite struct {
	o        options
	r        *results
	stop     <-chan os.Signal
	deadline time.Time
}

// phase runs the specs, so many at a time. When a process of the suite ends
// before its time, the tests that it ran have failed and the others go on in
// new ones.
func (s *suite) phase(specs []spec, procs int) error {
	for len(specs) > 0 && !s.r.Stopped {
		before := len(specs)
		some := fitting(specs)
		if err := s.ginkgo(some, min(procs, len(some))); err != nil {
			return err
		}
		specs = slices.DeleteFunc(specs, func(one spec) bool {
			t := s.r.byName[one.Name]
			return t != nil && t.done()
		})
		if len(specs) == before && !s.r.Stopped {
			s.r.Crashed = append(s.r.Crashed, "the suite ended without running a test: see ginkgo.log")
			return nil
		}
	}
	return nil
}

// maxFocus is how long a pattern may be, in bytes: Linux takes no argument of
// 128 KiB or more.
const maxFocus = 120 << 10

// fitting are the first specs, as many as one pattern may name.
func fitting(specs []spec) []spec {
	size := 64
	for i, one := range specs {
		size += len(regexp.QuoteMeta(one.Name)) + 1
		if size > maxFocus && i > 0 {
			return specs[:i]
		}
	}
	return specs
}

// command is the suite's command line for the specs.
func (s *suite) command(specs []spec, procs int) []string {
	var patterns []string
	for _, one := range specs {
		patterns = append(patterns, regexp.QuoteMeta(one.Name))
	}
	// Anchored, so that the long pattern costs little for the others.
	focus := "^Kubernetes e2e suite (?:" + strings.Join(patterns, "|") + ")$"
	program := filepath.Join(s.o.bin, "e2e.test")
	var args []string
	if s.o.netns != "" {
		args = append(args, "nsenter", "--net=/run/netns/"+s.o.netns)
	}
	if procs > 1 {
		args = append(args, filepath.Join(s.o.bin, "ginkgo"), fmt.Sprintf("--procs=%d", procs),
			"--no-color", "--timeout=24h", "--poll-progress-after=0s", "--focus="+focus, program, "--")
	} else {
		args = append(args, program, "--ginkgo.no-color", "--ginkgo.timeout=24h", "--ginkgo.focus="+focus)
	}
	args = append(args, "--kubeconfig="+s.o.kubeconfig, "--provider=skeleton", "--results="+s.r.file,
		"--kubectl-path="+filepath.Join(s.o.bin, "kubectl"), "--disable-log-dump", "--report-dir=",
		"--dump-logs-on-failure=false", "--test-limit="+s.o.testLimit.String(), "--long="+s.longFile())
	return append(args, s.o.extra...)
}

func (s *suite) longFile() string { return filepath.Join(s.o.out, "long.txt") }

// ginkgo runs the specs and follows them until all processes have ended.
func (s *suite) ginkgo(specs []spec, procs int) error {
	r := s.r
	names := strings.Join(longFirst(specs, r.usual), "\n")
	if err := os.WriteFile(s.longFile(), []byte(names), 0o644); err != nil {
		return err
	}
	out, err := os.OpenFile(filepath.Join(s.o.out, "ginkgo.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	args := s.command(specs, procs)
	command := exec.Command(args[0], args[1:]...)
	command.Stdout, command.Stderr = out, out
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := command.Start(); err != nil {
		return err
	}
	group := -command.Process.Pid
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()

	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	stuck := map[string]bool{}
	for {
		select {
		case err := <-ended:
			r.follow()
			// 1 says that tests failed, which the events say too.
			exit, ok := err.(*exec.ExitError)
			if err != nil && (!ok || exit.ExitCode() != 1) && !r.Stopped && len(stuck) == 0 {
				r.Crashed = append(r.Crashed, fmt.Sprintf("the suite itself: %v", err))
			}
			return r.interrupted(stuck, s.o.testLimit)
		case <-s.stop:
			r.stop("interrupted")
			syscall.Kill(group, syscall.SIGINT)
		case now := <-tick.C:
			r.follow()
			r.pulse(now)
			if !r.Stopped && now.After(s.deadline) {
				r.stop("the time limit of the run")
				syscall.Kill(group, syscall.SIGINT)
			}
			if s.o.pid != 0 && !r.Stopped && syscall.Kill(s.o.pid, 0) != nil {
				r.Crashed = append(r.Crashed, "the cluster's process ended")
				r.stop("the cluster is gone")
				syscall.Kill(group, syscall.SIGKILL)
			}
			// A test that does not end when told to takes its process with it.
			if len(stuck) == 0 && s.o.testLimit > 0 {
				for _, t := range r.over(now, s.o.testLimit+grace) {
					stuck[t.Name] = true
					fmt.Printf("ending the suite's processes, which go on without: %s\n", t.Name)
				}
				if len(stuck) > 0 {
					syscall.Kill(group, syscall.SIGKILL)
				}
			}
			if r.Stopped && time.Since(r.stoppedAt) > time.Minute {
				syscall.Kill(group, syscall.SIGKILL)
			}
		}
	}
}

// longFirst names the specs that usually take long, the longest first.
func longFirst(specs []spec, usual map[string]float64) []string {
	var long []string
	for _, s := range specs {
		if usual[s.Name] >= longTest {
			long = append(long, s.Name)
		}
	}
	slices.SortStableFunc(long, func(a, b string) int { return int(usual[b] - usual[a]) })
	return long
}
