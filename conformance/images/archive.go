package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
)

const (
	layout       = `{"imageLayoutVersion":"1.0.0"}`
	searchPath   = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar"
)

// object is JSON that is written, never read.
type object map[string]any

// writeArchive writes an OCI archive that containerd imports under name.
func writeArchive(to, name string, r recipe, layers [][]byte) error {
	var ids []string
	var described []object
	blobs := map[string][]byte{}
	put := func(mediaType string, data []byte) object {
		digest := digestOf(data)
		blobs[blobPath(digest)] = data
		return object{"mediaType": mediaType, "digest": digest, "size": len(data)}
	}
	for _, layer := range layers {
		d := put(typeLayer, layer)
		described = append(described, d)
		ids = append(ids, d["digest"].(string))
	}
	ports := object{}
	for _, port := range r.Ports {
		ports[port] = object{}
	}
	config, err := json.Marshal(object{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"config": object{
			"Env":          []string{"PATH=" + searchPath},
			"Entrypoint":   r.Entrypoint,
			"Cmd":          r.Command,
			"User":         r.User,
			"ExposedPorts": ports,
			// Two tags of one content are to be two images.
			"Labels": object{"name": name},
		},
		"rootfs": object{"type": "layers", "diff_ids": ids},
	})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal(object{
		"schemaVersion": 2,
		"mediaType":     typeManifest,
		"config":        put(typeConfig, config),
		"layers":        described,
	})
	if err != nil {
		return err
	}
	entry := put(typeManifest, manifest)
	entry["annotations"] = nameAnnotations(name)
	index, err := json.Marshal(object{"schemaVersion": 2, "mediaType": typeIndex, "manifests": []object{entry}})
	if err != nil {
		return err
	}
	blobs["index.json"] = index
	blobs["oci-layout"] = []byte(layout)
	return writeTar(to, blobs)
}

func nameAnnotations(name string) object {
	return object{
		"io.containerd.image.name":          name,
		"org.opencontainers.image.ref.name": name[strings.LastIndex(name, ":")+1:],
	}
}

// readArchive is the files of an archive by name.
func readArchive(from string) (map[string][]byte, error) {
	file, err := os.Open(from)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	files := map[string][]byte{}
	for r := tar.NewReader(file); ; {
		header, err := r.Next()
		if err == io.EOF {
			return files, nil
		} else if err != nil {
			return nil, fmt.Errorf("%s: %w", from, err)
		}
		if header.Typeflag != tar.TypeReg {
			continue
		}
		data, err := io.ReadAll(r)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", from, err)
		}
		files[header.Name] = data
	}
}

// descriptor names a blob of an archive.
type descriptor struct {
	Digest string `json:"digest"`
}

// readLayers is the layers of an archive's one image, the first one first.
func readLayers(from string) ([][]byte, error) {
	files, err := readArchive(from)
	if err != nil {
		return nil, err
	}
	blob := func(d descriptor) ([]byte, error) {
		data, ok := files[blobPath(d.Digest)]
		if !ok || digestOf(data) != d.Digest {
			return nil, fmt.Errorf("%s: blob %s is missing or wrong", from, d.Digest)
		}
		return data, nil
	}
	var index struct {
		Manifests []descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(files["index.json"], &index); err != nil {
		return nil, fmt.Errorf("%s: index.json: %w", from, err)
	}
	if len(index.Manifests) != 1 {
		return nil, fmt.Errorf("%s has %d images", from, len(index.Manifests))
	}
	data, err := blob(index.Manifests[0])
	if err != nil {
		return nil, err
	}
	var manifest struct {
		Layers []descriptor `json:"layers"`
	}
	if err := json.Unmarshal(data, &manifest); err != nil {
		return nil, fmt.Errorf("%s: manifest: %w", from, err)
	}
	var layers [][]byte
	for _, d := range manifest.Layers {
		layer, err := blob(d)
		if err != nil {
			return nil, err
		}
		layers = append(layers, layer)
	}
	return layers, nil
}

// renameArchive copies an OCI archive of one image under another name.
func renameArchive(from, to, name string) error {
	files, err := readArchive(from)
	if err != nil {
		return err
	}
	var index map[string]any
	if err := json.Unmarshal(files["index.json"], &index); err != nil {
		return fmt.Errorf("%s: index.json: %w", from, err)
	}
	manifests, _ := index["manifests"].([]any)
	for _, m := range manifests {
		if entry, ok := m.(map[string]any); ok {
			entry["annotations"] = nameAnnotations(name)
		}
	}
	if files["index.json"], err = json.Marshal(index); err != nil {
		return err
	}
	return writeTar(to, files)
}

// writeTar writes files into an archive that is there whole or not at all.
func writeTar(to string, files map[string][]byte) error {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, name := range sorted(files) {
		header := tar.Header{Name: name, Mode: 0o644, Size: int64(len(files[name])), Format: tar.FormatGNU}
		if err := w.WriteHeader(&header); err != nil {
			return err
		}
		if _, err := w.Write(files[name]); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	fresh := to + ".new"
	if err := os.WriteFile(fresh, out.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(fresh, to)
}
