"""A guest book: GET / lists the entries, POST / adds one."""
import os

from flask import Flask, jsonify, render_template, request

app = Flask(__name__)
entries = []


@app.get("/")
def index():
    return render_template("index.html", entries=entries)


@app.post("/")
def sign():
    entry = {"name": request.form["name"][:80], "text": request.form["text"][:500]}
    entries.append(entry)
    return jsonify(entry), 201


@app.get("/healthz")
def healthz():
    return jsonify(status="ok", entries=len(entries))


if __name__ == "__main__":
    app.run(host="0.0.0.0", port=int(os.environ.get("PORT", "5000")))
