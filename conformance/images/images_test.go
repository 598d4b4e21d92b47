package main

import (
	"bytes"
	"path/filepath"
	"testing"
)

func TestEntry(t *testing.T) {
	b := builder{recipes: map[string]recipe{
		"agnhost":     {},
		"tools":       {Internal: true},
		"sig-storage": {Absent: "not needed"},
		"bad.example": {Absent: "must fail"},
	}}
	for image, want := range map[string][2]string{
		"registry.example/e2e/agnhost:2.59":          {"agnhost", ""},
		"registry.example:5000/agnhost:2.59":         {"agnhost", ""},
		"registry.example/tools:1":                   {"", ""},
		"registry.example/volume/nfs:1":              {"", ""},
		"registry.example/sig-storage/hostpath:v1.0": {"sig-storage", "not needed"},
		"bad.example/agnhost:2.6":                    {"bad.example", "must fail"},
	} {
		if entry, why := b.entry(image); entry != want[0] || why != want[1] {
			t.Errorf("%s: %q, %q", image, entry, why)
		}
	}
}

// What is written is read again, under another name too, and nothing that was
// changed on the way.
func TestArchive(t *testing.T) {
	dir := t.TempDir()
	tree := tree{}
	tree.folder("tmp", 0o1777)
	tree.add("/bin/program", node{mode: 0o4755, data: []byte("text")})
	tree.add("bin/sh", node{mode: 0o777, link: "program"})
	layer, err := tree.tar()
	if err != nil {
		t.Fatal(err)
	}
	first, second := filepath.Join(dir, "first.tar"), filepath.Join(dir, "second.tar")
	if err := writeArchive(first, "registry.example/a:1", recipe{}, [][]byte{layer, []byte("more")}); err != nil {
		t.Fatal(err)
	}
	if err := renameArchive(first, second, "registry.example/b:2"); err != nil {
		t.Fatal(err)
	}
	for _, archive := range []string{first, second} {
		layers, err := readLayers(archive)
		if err != nil {
			t.Fatal(err)
		}
		if len(layers) != 2 || !bytes.Equal(layers[0], layer) || string(layers[1]) != "more" {
			t.Errorf("%s: %d layers, not what was written", archive, len(layers))
		}
	}
	files, err := readArchive(second)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(files["index.json"], []byte("registry.example/b:2")) {
		t.Errorf("index: %s", files["index.json"])
	}
	for name := range files {
		if bytes.Equal(files[name], []byte("more")) {
			files[name] = []byte("less")
		}
	}
	if err := writeTar(second, files); err != nil {
		t.Fatal(err)
	}
	if _, err := readLayers(second); err == nil {
		t.Error("a layer that was changed is taken")
	}
}
