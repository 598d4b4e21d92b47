package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strings"
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

// A registry that wants a token and has images of two architectures; what it
// sends wrong is not taken.
func TestPull(t *testing.T) {
	marshal := func(v any) []byte {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	layer, config := []byte("layer"), []byte("{}")
	manifest := marshal(object{"mediaType": typeManifest, "config": object{"digest": digestOf(config)},
		"layers": []object{{"digest": digestOf(layer)}}})
	platform := func(architecture, digest string) object {
		return object{"digest": digest, "platform": object{"os": "linux", "architecture": architecture}}
	}
	index := marshal(object{"manifests": []object{platform("other", digestOf(config)), platform(runtime.GOARCH, digestOf(manifest))}})
	content := map[string][]byte{
		"/v2/some/image/manifests/1.0":                   index,
		"/v2/some/image/manifests/" + digestOf(manifest): manifest,
		"/v2/some/image/blobs/" + digestOf(config):       config,
		"/v2/some/image/blobs/" + digestOf(layer):        layer,
	}
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	defer server.Close()
	mux.HandleFunc("/token", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("scope") != "repository:some/image:pull" {
			w.WriteHeader(http.StatusForbidden)
		}
		w.Write([]byte(`{"token": "t"}`))
	})
	mux.HandleFunc("/v2/", func(w http.ResponseWriter, r *http.Request) {
		data, ok := content[r.URL.Path]
		switch {
		case r.Header.Get("Authorization") != "Bearer t":
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+server.URL+`/token",service="s"`)
			w.WriteHeader(http.StatusUnauthorized)
		case !ok:
			w.WriteHeader(http.StatusNotFound)
		default:
			w.Header().Set("Content-Type", typeManifest)
			w.Write(data)
		}
	})
	from := newRegistries()
	from.scheme = "http"
	host := strings.TrimPrefix(server.URL, "http://")
	name, archive := host+"/some/image:1.0", filepath.Join(t.TempDir(), "image.tar")
	if !from.reach(name) || from.reach("localhost:1/some/image:1.0") {
		t.Error("reachable is not told from unreachable")
	}
	if err := from.pull(name, archive); err != nil {
		t.Fatal(err)
	}
	if layers, err := readLayers(archive); err != nil || len(layers) != 1 || string(layers[0]) != "layer" {
		t.Errorf("%q, %v", layers, err)
	}
	if err := from.pull(host+"/some/image:2.0", archive); err == nil {
		t.Error("a tag that is not there was pulled")
	}
	content["/v2/some/image/blobs/"+digestOf(layer)] = []byte("forged")
	if err := from.pull(name, archive); err == nil || !strings.Contains(err.Error(), "what came is not") {
		t.Errorf("a forged layer: %v", err)
	}
}
