# ligatures and curly quotes to plain letters
s/ﬁ/fi/g
s/ﬂ/fl/g
s/’/'/g
