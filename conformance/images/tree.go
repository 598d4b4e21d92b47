package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// tree is the content of a layer by path, without the leading slash.
type tree map[string]node

// node is a file, a symbolic link, or with neither data nor link a folder.
type node struct {
	mode int64
	data []byte
	link string
	dir  bool
}

func (t tree) add(path string, n node) {
	path = strings.TrimPrefix(path, "/")
	for dir := filepath.Dir(path); dir != "."; dir = filepath.Dir(dir) {
		if _, ok := t[dir]; !ok {
			t[dir] = node{mode: 0o755, dir: true}
		}
	}
	t[path] = n
}

func (t tree) folder(path string, mode int) {
	t.add(path, node{mode: int64(mode), dir: true})
}

func (t tree) file(path, from string, mode int64) error {
	data, err := os.ReadFile(from)
	if err == nil {
		t.add(path, node{mode: mode, data: data})
	}
	return err
}

// busybox adds the program and a link for each applet.
func (t tree) busybox(program string) error {
	applets, err := exec.Command(program, "--list").Output()
	if err != nil {
		return fmt.Errorf("busybox --list: %w", err)
	}
	for _, applet := range strings.Fields(string(applets)) {
		t.add("bin/"+applet, node{mode: 0o777, link: "busybox"})
	}
	return t.file("bin/busybox", program, 0o755)
}

// unpack downloads Debian packages and all they depend on, and unpacks them
// into a folder below work, once for each set of packages.
func unpack(packages []string, work string) (string, error) {
	key := sha256.Sum256([]byte(strings.Join(packages, " ")))
	root := filepath.Join(work, fmt.Sprintf("%x", key[:6]))
	if _, err := os.Stat(root); err == nil {
		return root, nil
	}
	args := []string{"depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts",
		"--no-breaks", "--no-replaces", "--no-enhances"}
	list, err := exec.Command("apt-cache", append(args, packages...)...).Output()
	if err != nil {
		return "", fmt.Errorf("apt-cache depends: %w", err)
	}
	var names []string
	for _, line := range strings.Split(string(list), "\n") {
		if line != "" && line[0] != ' ' && line[0] != '<' && line[0] != '|' {
			names = append(names, line)
		}
	}
	debs := filepath.Join(work, "debs")
	fresh := root + ".new"
	os.RemoveAll(fresh)
	for _, dir := range []string{debs, fresh} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", err
		}
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		file, err := download(name, debs)
		if err != nil {
			return "", err
		}
		if out, err := exec.Command("dpkg-deb", "-x", file, fresh).CombinedOutput(); err != nil {
			return "", fmt.Errorf("dpkg-deb -x %s: %s", file, out)
		}
	}
	return root, os.Rename(fresh, root)
}

func download(name, debs string) (string, error) {
	pattern := filepath.Join(debs, name+"_*.deb")
	if found, _ := filepath.Glob(pattern); len(found) > 0 {
		return found[0], nil
	}
	get := exec.Command("apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", name)
	get.Dir = debs
	if out, err := get.CombinedOutput(); err != nil {
		return "", fmt.Errorf("apt-get download %s: %s", name, out)
	}
	found, _ := filepath.Glob(pattern)
	if len(found) == 0 {
		return "", fmt.Errorf("apt-get download %s left no file", name)
	}
	return found[0], nil
}

// copyFrom adds the files that the patterns name below root, and the libraries
// that the programs and libraries among them need.
func (t tree) copyFrom(root string, patterns []string) error {
	for _, pattern := range patterns {
		for _, one := range braces(pattern) {
			paths, err := expand(root, one)
			if err != nil {
				return err
			}
			for _, p := range paths {
				if err := t.take(root, p); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// braces expands one {a,b} of a pattern.
func braces(pattern string) []string {
	before, rest, ok := strings.Cut(pattern, "{")
	if !ok {
		return []string{pattern}
	}
	inner, after, _ := strings.Cut(rest, "}")
	var out []string
	for _, part := range strings.Split(inner, ",") {
		out = append(out, before+part+after)
	}
	return out
}

// expand lists what a pattern names below root, as paths without root; with
// /** at its end, all below.
func expand(root, pattern string) ([]string, error) {
	deep := strings.HasSuffix(pattern, "/**")
	found, err := filepath.Glob(filepath.Join(root, strings.TrimSuffix(pattern, "/**")))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, f := range found {
		walk := func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if !d.IsDir() {
				out = append(out, strings.TrimPrefix(p, root))
			}
			return nil
		}
		if !deep {
			out = append(out, strings.TrimPrefix(f, root))
		} else if err := filepath.WalkDir(f, walk); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// take adds one file of root, what its link points to, and its libraries.
func (t tree) take(root, p string) error {
	key := strings.TrimPrefix(p, "/")
	if old, ok := t[key]; ok && old.link != "busybox" {
		return nil
	}
	full := filepath.Join(root, p)
	info, err := os.Lstat(full)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // A link out of the packages, such as an alternative.
	} else if err != nil {
		return err
	}
	switch {
	case info.IsDir():
		return nil
	case info.Mode()&fs.ModeSymlink != 0:
		to, err := os.Readlink(full)
		if err != nil {
			return err
		}
		target := to
		if !path.IsAbs(to) {
			target = path.Join(path.Dir(p), to)
		}
		if _, err := os.Lstat(filepath.Join(root, target)); err != nil {
			return nil
		}
		t.add(key, node{mode: 0o777, link: to})
		return t.take(root, target)
	}
	mode := int64(info.Mode().Perm())
	if info.Mode()&fs.ModeSetuid != 0 {
		mode |= 0o4000
	}
	if err := t.file(key, full, mode); err != nil {
		return err
	}
	return t.libraries(root, full)
}

// libraries adds what a dynamic program or library needs to be loaded.
func (t tree) libraries(root, file string) error {
	program, err := elf.Open(file)
	if err != nil {
		return nil // Not a program.
	}
	defer program.Close()
	needed, _ := program.ImportedLibraries()
	for _, section := range program.Progs {
		if section.Type == elf.PT_INTERP {
			text := make([]byte, section.Filesz)
			if _, err := section.ReadAt(text, 0); err != nil {
				return err
			}
			if err := t.take(root, strings.TrimRight(string(text), "\x00")); err != nil {
				return err
			}
		}
	}
	for _, name := range needed {
		var found []string
		for _, dir := range []string{"lib/*-linux-gnu", "usr/lib/*-linux-gnu", "lib", "usr/lib", "lib64"} {
			more, _ := filepath.Glob(filepath.Join(root, dir, name))
			found = append(found, more...)
		}
		if len(found) == 0 {
			return fmt.Errorf("%s needs %s, which no package has", file, name)
		}
		if err := t.take(root, strings.TrimPrefix(found[0], root)); err != nil {
			return err
		}
	}
	return nil
}

// tar is the tree as a layer; the same tree gives the same bytes.
func (t tree) tar() ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, name := range sorted(t) {
		n := t[name]
		header := tar.Header{Name: name, Mode: n.mode, Format: tar.FormatGNU, Typeflag: tar.TypeReg, Size: int64(len(n.data))}
		switch {
		case n.dir:
			header.Typeflag, header.Name = tar.TypeDir, name+"/"
		case n.link != "":
			header.Typeflag, header.Linkname = tar.TypeSymlink, n.link
		}
		if err := w.WriteHeader(&header); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if _, err := w.Write(n.data); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return out.Bytes(), err
}
