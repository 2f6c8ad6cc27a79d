FROM alpine


  # text  
  RUN a \
  b   
